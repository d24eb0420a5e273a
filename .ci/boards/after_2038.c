/* The wall clock of programs with a C library of 32 bits, 14 years ahead. libfaketime 0.9.10 does not change
   the function that std calls there. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct timespec_of_64_bits { long long seconds; long nanoseconds, padding; };

int __clock_gettime64(clockid_t clock, struct timespec_of_64_bits *time) {
    int result = syscall(SYS_clock_gettime64, clock, time);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->seconds += 14LL * 366 * 86400;
    return result;
}
