/* The name of the calling thread. musl's function of this name can also name other threads, by a file whose path
   it makes by snprintf, and all of printf with its floating-point numbers is 12 kB. Rust's standard library
   names the calling thread alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/prctl.h>

int pthread_setname_np(pthread_t thread, const char *name)
{
	if (strnlen(name, 16) > 15)
		return ERANGE;
	if (thread != pthread_self())
		return ENOSYS;
	return prctl(PR_SET_NAME, (unsigned long)name, 0UL, 0UL, 0UL) ? errno : 0;
}
