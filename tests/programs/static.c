/* Linked without shared libraries: files, heap, time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct node {
    struct node *next;
    unsigned value;
    char text[40];
};

int main(void) {
    struct node *list = NULL;
    unsigned x = 1;
    FILE *out = fopen("static.txt", "w+");
    if (out == NULL) return 1;
    for (int step = 0; step < 700; step++) {
        for (int i = 0; i < 20000; i++) {
            x = x * 1664525u + 1013904223u;
            if (x % 8 == 0) {
                struct node *node = malloc(sizeof *node);
                snprintf(node->text, sizeof node->text, "node %u of step %d", x % 1000, step);
                node->value = x;
                node->next = list;
                list = node;
            } else if (list != NULL && x % 9 == 0) {
                struct node *node = list;
                list = node->next;
                free(node);
            }
        }
        unsigned sum = 0, count = 0;
        for (struct node *node = list; node != NULL; node = node->next, count++) sum = sum * 31 + node->value + strlen(node->text);
        fprintf(out, "%d %u %u\n", step, count, sum);
        if (step % 70 == 0) {
            printf("%d %u\n", step, sum);
            fflush(stdout);
        }
        nanosleep(&(struct timespec){0, 5000000}, NULL);
    }
    rewind(out);
    unsigned lines = 0;
    for (int c; (c = fgetc(out)) != EOF;) lines += c == '\n';
    printf("%u lines\n", lines);
    return 0;
}
