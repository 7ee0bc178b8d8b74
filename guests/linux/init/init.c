// The guest's only init, in the initramfs and as /sbin/init on the disk: mounts, network, servers, reaping, power off.
// One process that never execs itself: each exec costs tens of milliseconds where guest kernel code is interpreted.
//
// Kernel command line (see ../README.md): ip=…, console=…, minivmm.services=…, minivmm.<service>=…, minivmm.then=…
#include "sys.h"
#include <fcntl.h>
#include <linux/reboot.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/wait.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof(*(array))))
#define CONSOLE 2

struct service {
    const char *name;
    uint16_t port;  // 0: it doesn't listen
    char *argv[16]; // extra arguments from the command line go behind these
    long pid;       // 0: not running
    int wanted;
    char *preload;  // environment where replies can be told (/dev/minivmm-pair)
};

static struct service services[] = {
    {"redis", 6379, {"/usr/bin/redis-server", "/etc/redis.conf"}, 0, 0, NULL},
    {"nginx", 80, {"/usr/sbin/nginx", "-c", "/etc/nginx.conf"}, 0, 0, "LD_PRELOAD=/lib/minivmm-nginx.so"},
    {"memcached", 11211, {"/usr/bin/memcached", "-u", "root", "-m", "32", "-t", "1", "-c", "256", "-U", "0", "-o", "no_modern"}, 0, 0,
     "LD_PRELOAD=/lib/minivmm-memcached.so"},
    {"locks", 0, {"/usr/bin/locks"}, 0, 0, NULL},
    {"command", 0, {"/minivmm/run"}, 0, 0, NULL}, // of a disk that ../../image made
};

static char commandLine[4096];
static char scratch[4096];
static char *environment[] = {
    "PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TERM=vt100",
    NULL, NULL, NULL, NULL, // room for what saveAVX() and start() add
};

// MARK: console

static void say(const char *s) { SYS_3(write, CONSOLE, s, length(s)); }

static void say2(const char *a, const char *b) {
    char line[128] = "minivmm: ";
    size_t n = length(line);
    while (*a && n < sizeof line - 2) line[n++] = *a++;
    while (*b && n < sizeof line - 2) line[n++] = *b++;
    line[n++] = '\n';
    SYS_3(write, CONSOLE, line, n); // one write, so that lines of servers don't fall into it
}

// MARK: command line

// The value of the last `key` (with its '=') on the kernel command line, ended in place at the first blank; or null.
static char *option(const char *key, char *into, size_t size) {
    char *value = NULL;
    for (char *p = commandLine; *p;) {
        char *found = after(p, key);
        if (found) value = found;
        while (*p && *p != ' ' && *p != '\n') p++;
        while (*p == ' ' || *p == '\n') p++;
    }
    if (!value) return NULL;
    size_t n = 0;
    while (value[n] && value[n] != ' ' && value[n] != '\n' && n < size - 1) into[n] = value[n], n++;
    into[n] = 0;
    return into;
}

static void readCommandLine(void) {
    long fd = SYS_2(open, "/proc/cmdline", O_RDONLY);
    long n = SYS_3(read, fd, commandLine, sizeof commandLine - 1);
    commandLine[n > 0 ? n : 0] = 0;
    SYS_1(close, fd);
}

// Cuts `*rest` at `separator` and moves it on; null at the end.
static char *cut(char **rest, char separator) {
    char *start = *rest;
    if (!start) return NULL;
    char *p = start;
    while (*p && *p != separator) p++;
    *rest = *p ? p + 1 : NULL;
    *p = 0;
    return start;
}

// MARK: file systems

static void mountAt(const char *type, const char *path) {
    long r = SYS_5(mount, type, path, type, MS_NOSUID, NULL);
    if (r < 0 && r != -16 /* EBUSY: the kernel had mounted it */) say2("cannot mount ", path);
}

// From the initramfs into the disk, without exec. False when there is no such disk.
static int switchRoot(void) {
    if (SYS_5(mount, "/dev/vda", "/root", "ext4", MS_NOATIME, NULL) < 0) return 0;
    SYS_5(mount, "/dev", "/root/dev", NULL, MS_MOVE, NULL);
    SYS_1(chdir, "/root");
    SYS_5(mount, ".", "/", NULL, MS_MOVE, NULL);
    SYS_1(chroot, ".");
    return 1;
}

static void writeFile(const char *path, const char *text) {
    long fd = SYS_2(open, path, O_WRONLY);
    if (fd < 0) return;
    SYS_3(write, fd, text, length(text));
    SYS_1(close, fd);
}

// MARK: network

// A dotted address in network byte order; 0 when it is none.
static uint32_t address(const char *s) {
    uint32_t value = 0, part = 0;
    for (int dots = 0; *s; s++) {
        if (*s == '.' && ++dots < 4) value = value << 8 | part, part = 0;
        else if (*s >= '0' && *s <= '9') part = part * 10 + (uint32_t)(*s - '0');
        else return 0;
        if (part > 255) return 0;
    }
    return __builtin_bswap32(value << 8 | part);
}

static void setAddress(struct sockaddr *sa, uint32_t value) {
    struct sockaddr_in *in = (struct sockaddr_in *)sa;
    in->sin_family = 2;
    in->sin_addr.s_addr = value;
}

static void interfaceUp(long fd, struct ifreq *request) {
    request->ifr_flags = IFF_UP | IFF_RUNNING;
    if (SYS_3(ioctl, fd, SIOCSIFFLAGS, request) < 0) say2("no interface ", request->ifr_name);
}

// ip=<client>:<server>:<gateway>:<netmask>:<host name>:<device>:… as the kernel's own CONFIG_IP_PNP reads it
// (which would wait 12 s for a device on a machine without one).
static void configureNetwork(void) {
    long fd = SYS_3(socket, 2, 2, 0);
    struct ifreq request = {.ifr_name = "lo"};
    interfaceUp(fd, &request); // gets 127.0.0.1 by itself
    char *rest = option("ip=", scratch, sizeof scratch);
    if (!rest) return;
    char *field[6];
    for (int i = 0; i < 6; i++) {
        field[i] = cut(&rest, ':');
        if (!field[i]) field[i] = "";
    }
    const char *name = *field[5] ? field[5] : "eth0";
    memset(&request, 0, sizeof request);
    for (int i = 0; name[i] && i < IFNAMSIZ - 1; i++) request.ifr_name[i] = name[i];
    setAddress(&request.ifr_addr, address(field[0]));
    if (SYS_3(ioctl, fd, SIOCSIFADDR, &request) < 0) say2("no interface ", name);
    if (*field[3]) {
        setAddress(&request.ifr_netmask, address(field[3]));
        SYS_3(ioctl, fd, SIOCSIFNETMASK, &request);
    }
    interfaceUp(fd, &request);
    if (*field[2]) {
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
        setAddress(&route.rt_dst, 0);
        setAddress(&route.rt_genmask, 0);
        setAddress(&route.rt_gateway, address(field[2]));
        if (SYS_3(ioctl, fd, SIOCADDRT, &route) < 0) say2("no route to ", field[2]);
    }
    if (*field[4]) SYS_2(sethostname, field[4], length(field[4]));
    SYS_1(close, fd);
}

// MARK: servers

// With `noxsave` the kernel saves no AVX registers at a task switch, yet programs may still see AVX in CPUID: keep glibc
// and OpenSSL off it, or a preempted memcpy corrupts data.
static void saveAVX(void) {
    int n = 3;
    if (!option("noxsave", scratch, sizeof scratch)) return;
    environment[n++] = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,"
                       "-AVX_Fast_Unaligned_Load,-FMA,-FMA4,-XSAVE,-XSAVEC";
    environment[n++] = "OPENSSL_ia32cap=0:0";
}

static void defaultSignals(void) {
    uint64_t none = 0;
    SYS_4(rt_sigprocmask, SIG_SETMASK, &none, NULL, 8);
}

static void start(struct service *service) {
    char **end = environment;
    while (*end) end++;
    if (service->preload && SYS_2(access, "/dev/minivmm-pair", 0) == 0) *end = service->preload;
    long pid = sys_vfork();
    if (pid == 0) {
        defaultSignals();
        SYS_3(execve, service->argv[0], service->argv, environment);
        SYS_1(exit_group, 127);
    }
    *end = NULL; // it had its copy
    if (pid > 0) service->pid = pid;
    else say2("cannot start ", service->name);
}

static void startServices(void) {
    static char list[256], extra[COUNT(services)][256];
    char *rest = option("minivmm.services=", list, sizeof list);
    int all = !rest;
    for (char *name; (name = cut(&rest, ',')) != NULL;)
        for (int i = 0; i < COUNT(services); i++) services[i].wanted |= equal(name, services[i].name);
    for (int i = 0; i < COUNT(services); i++) {
        struct service *service = &services[i];
        service->wanted |= all && service->port;
        if (!service->wanted) continue;
        // minivmm.redis=--appendonly,yes: more arguments, separated by commas.
        char key[32] = "minivmm.";
        size_t n = length(key);
        for (const char *p = service->name; *p; p++) key[n++] = *p;
        key[n] = '=';
        char *more = option(key, extra[i], sizeof extra[i]);
        int argc = 0;
        while (service->argv[argc]) argc++;
        while (argc < COUNT(service->argv) - 1 && (service->argv[argc] = cut(&more, ',')) != NULL) argc++;
        start(service);
    }
}

// Is a socket listening on `port`, by /proc/net/tcp? ("…: 00000000:18EB 00000000:0000 0A …": state 0A is LISTEN.)
static int isListening(const char *table, uint16_t port) {
    char want[] = ":0000 00000000:0000 0A";
    for (int i = 0; i < 4; i++) want[1 + i] = "0123456789ABCDEF"[port >> (12 - 4 * i) & 15];
    for (; *table; table++)
        if (*table == ':' && after(table, want)) return 1;
    return 0;
}

// Has every wanted service opened its port? A dead one counts as not.
static int servicesListen(void) {
    long fd = SYS_2(open, "/proc/net/tcp", O_RDONLY), n = 0, r;
    while ((r = SYS_3(read, fd, scratch + n, sizeof scratch - 1 - (size_t)n)) > 0) n += r;
    scratch[n] = 0;
    SYS_1(close, fd);
    for (int i = 0; i < COUNT(services); i++)
        if (services[i].wanted && services[i].port && !isListening(scratch, services[i].port)) return 0;
    return 1;
}

// MARK: shell

static long startShell(void) {
    static char tty[32] = "/dev/";
    static char *argv[] = {"-sh", NULL};
    char *name = option("console=", scratch, sizeof scratch);
    size_t n = 5;
    for (const char *p = name ? name : "ttyS0"; *p && *p != ',' && n < sizeof tty - 1; p++) tty[n++] = *p;
    tty[n] = 0;
    long pid = sys_vfork();
    if (pid == 0) {
        defaultSignals();
        SYS_1(setsid, 0);
        long fd = SYS_2(open, tty, O_RDWR);
        SYS_3(ioctl, fd, TIOCSCTTY, 0);
        for (int i = 0; i < 3; i++) SYS_2(dup2, fd, i);
        SYS_3(execve, "/bin/sh", argv, environment);
        SYS_1(exit_group, 127);
    }
    return pid > 0 ? pid : 0;
}

// MARK: the end

static void pause_ms(long ms) {
    struct { long s, ns; } t = {ms / 1000, ms % 1000 * 1000000};
    SYS_2(nanosleep, &t, NULL);
}

static void stop(unsigned command) {
    SYS_2(kill, -1, SIGTERM);
    for (int i = 0; i < 40; i++) { // until no child is left, at most 4 s
        long r;
        while ((r = SYS_4(wait4, -1, NULL, WNOHANG, NULL)) > 0) {}
        if (r < 0) break;
        pause_ms(100);
    }
    SYS_2(kill, -1, SIGKILL);
    SYS_1(sync, 0);
    SYS_5(mount, NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    SYS_4(reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, command, NULL);
    say2("cannot power off", "");
}

// Reaps what has ended. Returns true if `shell` was among it.
static int reap(long shell) {
    int ended = 0;
    long pid;
    while ((pid = SYS_4(wait4, -1, NULL, WNOHANG, NULL)) > 0) {
        ended |= pid == shell;
        for (int i = 0; i < COUNT(services); i++)
            if (services[i].pid == pid) {
                services[i].pid = 0;
                say2("ended: ", services[i].name);
            }
    }
    return ended;
}

#define BIT(signal) (1ul << ((signal) - 1))

__attribute__((used, noreturn)) void start_c(void) {
    say("minivmm: init\n"); // the kernel has opened the console as descriptors 0 to 2
    mountAt("devtmpfs", "/dev");

    // Signals are read from a descriptor: none interrupts the work, none is lost.
    uint64_t handled = BIT(SIGCHLD) | BIT(SIGTERM) | BIT(SIGINT) | BIT(SIGUSR1) | BIT(SIGUSR2);
    SYS_4(rt_sigprocmask, SIG_SETMASK, &handled, NULL, 8);
    long signals = SYS_4(signalfd4, -1, &handled, 8, O_CLOEXEC);

    // /root is in the initramfs, not on the disk.
    int disk = SYS_2(access, "/root", 0) < 0 || switchRoot();
    mountAt("proc", "/proc");
    mountAt("tmpfs", "/tmp");
    mountAt("tmpfs", "/run");
    readCommandLine();
    saveAVX();
    configureNetwork();
    if (disk) {
        writeFile("/proc/sys/vm/overcommit_memory", "1"); // redis forks with its data set
        startServices();
    } else {
        say2("no disk", "");
    }

    char *then = option("minivmm.then=", (char[16]){0}, 16);
    int started = 0;
    long shell = 0;
    for (;;) {
        if (!started && servicesListen()) {
            started = 1;
            say2("services started", "");
            if (then && equal(then, "poweroff")) stop(LINUX_REBOOT_CMD_POWER_OFF);
            if (then && equal(then, "reboot")) stop(LINUX_REBOOT_CMD_RESTART);
            if (then && equal(then, "panic")) SYS_1(exit_group, 1); // init's death is a kernel panic
            if (disk) say2("press Enter for a shell", "");
        }
        // The shell is started by the first key, which it then reads; nobody waits for its exec before.
        struct pollfd waits[2] = {{(int)signals, POLLIN, 0}, {disk && started && !shell ? 0 : -1, POLLIN, 0}};
        SYS_3(poll, waits, 2, started ? -1 : 250);
        if (waits[1].revents & POLLIN) shell = startShell();
        if (!(waits[0].revents & POLLIN)) continue;
        struct { uint32_t signal, rest[31]; } info;
        SYS_3(read, signals, &info, sizeof info);
        if (info.signal == SIGCHLD) { if (reap(shell)) shell = 0; }
        else if (info.signal == SIGINT) stop(LINUX_REBOOT_CMD_RESTART);
        else stop(LINUX_REBOOT_CMD_POWER_OFF); // SIGTERM, and what busybox' poweroff and halt send
    }
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tand $-16, %rsp\n\tcall start_c\n");
