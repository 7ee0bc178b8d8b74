// Threads that fight for one lock: what a guest's CPUs do for each other shows when they get less of their host.
// locks [threads [inside µs [outside µs]]]; says every second how often the lock was taken.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static volatile uint64_t taken;
static uint64_t inside = 50, outside = 200; // in turns of work()

// A fixed amount of work, not of time: a CPU that does not run does none.
static void work(uint64_t turns) {
    for (volatile uint64_t i = 0; i < turns; i++) {}
}

// How many turns are a microsecond, when nobody disturbs.
static uint64_t turnsPerMicrosecond(void) {
    uint64_t best = ~0ull;
    for (int i = 0; i < 20; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        work(100000);
        clock_gettime(CLOCK_MONOTONIC, &b);
        uint64_t ns = (uint64_t)(b.tv_sec - a.tv_sec) * 1000000000u + (uint64_t)b.tv_nsec - (uint64_t)a.tv_nsec;
        if (ns < best) best = ns;
    }
    return best ? 100000ull * 1000 / best : 1;
}

static void *fight(void *unused) {
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&mutex);
        work(inside);
        taken = taken + 1;
        pthread_mutex_unlock(&mutex);
        work(outside);
    }
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    if (argc > 2) inside = strtoull(argv[2], NULL, 10);
    if (argc > 3) outside = strtoull(argv[3], NULL, 10);
    uint64_t turns = turnsPerMicrosecond();
    inside *= turns;
    outside *= turns;
    for (int i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, fight, NULL) != 0) return 1;
    }
    for (uint64_t before = 0;;) {
        sleep(1);
        uint64_t now = taken;
        printf("locks: %llu\n", (unsigned long long)(now - before));
        fflush(stdout);
        before = now;
    }
}
