// pair OWN OTHER: makes the file OWN longer, byte by byte, and looks how long OTHER is, until there is a file `go`. Then it
// prints how many bytes it has written and how long it has last seen OTHER.
//
// Of two such programs that are saved at one instant, neither can have seen more than the other has written.
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    int own = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0600);
    long written = 0, seen = 0;
    struct stat other;
    while (access("go", F_OK) != 0) {
        if (write(own, "x", 1) != 1)
            return 3;
        written++;
        if (stat(argv[2], &other) == 0)
            seen = other.st_size;
        usleep(100);
    }
    printf("%ld %ld\n", written, seen);
    return 0;
}
