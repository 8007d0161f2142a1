/* A program with the engine inside: completes a text with a GGUF model.
 *     cc -Icsrc examples/embed.c lmlite/lib/liblmlite.so -Wl,-rpath,$PWD/lmlite/lib -lpthread -o embed && ./embed MODEL.gguf 'Once upon' */
#include "lmlite.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
enum { LOAD = 1, GENERATE = 2, LOADED = 65, TEXT = 67, FINISHED = 69, ERROR = 75, N = 1 << 16 }; /* csrc/frames.h */

static void *serve(void *fd) { lm_engine_serve(*(int *)fd); return NULL; }
static void send_frame(int fd, uint32_t kind, const char *json) {
    uint32_t head[3] = {(uint32_t)strlen(json), kind, 1}; /* little-endian; the last one is the request's number */
    send(fd, head, sizeof head, MSG_MORE);
    send(fd, json, head[0], 0);
}

int main(int argc, char **argv) {
    int fd[2];
    uint32_t head[3];
    pthread_t thread;
    static char text[N];
    if (argc != 3 || socketpair(AF_UNIX, SOCK_STREAM, 0, fd) != 0) return 2;
    pthread_create(&thread, NULL, serve, &fd[1]);
    snprintf(text, N, "{\"path\": \"%s\"}", argv[1]); /* what else can be said is in csrc/protocol.md */
    send_frame(fd[0], LOAD, text);
    while (recv(fd[0], head, sizeof head, MSG_WAITALL) == sizeof head) {
        char *payload = calloc(1, head[0] + 1);
        recv(fd[0], payload, head[0], MSG_WAITALL);
        snprintf(text, N, "{\"text\": \"%s\", \"max_tokens\": 40, \"sampling\": {\"temperature\": 0}}", argv[2]);
        if (head[1] == LOADED) send_frame(fd[0], GENERATE, text);
        if (head[1] == TEXT) printf("%s", payload), fflush(stdout);
        if (head[1] == ERROR) fprintf(stderr, "%s\n", payload);
        if (head[1] == FINISHED || head[1] == ERROR) shutdown(fd[0], SHUT_RDWR); /* the engine ends */
        free(payload);
    }
    return pthread_join(thread, NULL);
}
