/* Loaded into a process under torture (LD_PRELOAD): adds to the time of the wall what stands, in microseconds, in the file
 * that is named like the process. All that the process does sees the same clock, also what goes around its own seam. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile long long *shift_us;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  char path[4096];
  const char *folder = getenv("TORTURE_CLOCKS");
  real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  if (!folder) return;
  snprintf(path, sizeof path, "%s/%d", folder, getpid());
  int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0) return;
  if (ftruncate(file, sizeof *shift_us) == 0) {
    void *mapped = mmap(NULL, sizeof *shift_us, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) shift_us = mapped;
  }
  close(file);
}

int clock_gettime(clockid_t clock, struct timespec *out) {
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, out);
  if (failed || !shift_us || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  long long nanoseconds = out->tv_nsec + *shift_us % 1000000 * 1000;
  out->tv_sec += *shift_us / 1000000 + nanoseconds / 1000000000;
  out->tv_nsec = nanoseconds % 1000000000;
  if (out->tv_nsec < 0) {
    out->tv_nsec += 1000000000;
    out->tv_sec -= 1;
  }
  return 0;
}
