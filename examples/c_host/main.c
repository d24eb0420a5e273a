/* A C program that links larder and keeps the default of SIGPIPE, which ends a process. It prints the
   address of its server, and runs until its standard input ends. */
#include <stdio.h>
#include <unistd.h>

int larder_serve(const char *address, char *bound, size_t room);

int main(void) {
    char bound[64], byte;
    /* The address does not fit. Nothing is left of this call that would disturb the next one. */
    if (larder_serve("127.0.0.1:0", bound, 4) != 1) return 1;
    if (larder_serve("127.0.0.1:0", bound, sizeof bound) != 0) return 1;
    printf("%s\n", bound);
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    return 0;
}
