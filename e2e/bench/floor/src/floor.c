/*
 * The floor: what the kernel alone takes for a pod's life, each step with the fewest system calls, nothing checked
 * that cannot fail and no state kept. It is a measuring rod for the benchmark, not code to build on.
 *
 *   floor CGROUP LOWER WORK   reads one line per pod from standard input, answers with one line of microseconds:
 *                             run_pod_sandbox create_start exec_sync stop_container stop_pod_sandbox
 *   floor CGROUP LOWER WORK N starts N pods with two workers and answers with the microseconds until all ran
 *
 * CGROUP is a path below each hierarchy's mount; LOWER is a root file system with /bin/wait and /bin/true; WORK is a
 * directory on the file system that holds containers' writable layers. The caller gives it namespaces of its own.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MUST(x) ({ long r_ = (long)(x); if (r_ < 0) { fprintf(stderr, "floor: line %d: %s: %m\n", __LINE__, #x); _exit(1); } r_; })

static const char *group, *lower, *work;
static int hostns, bridge;
static const char *v1[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"};
static int nv1; /* 0 where the controllers are on v2 */
static char v2[256];

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e6 + t.tv_nsec / 1e3; }

/* ---- netlink: messages collect in buf, one send, one ACK each ---- */
static char buf[8192];
static int len, count;
static struct nlmsghdr *cur;

static void begin(int type, int flags, void *h, int n)
{
	cur = (void *)(buf + len);
	memset(cur, 0, sizeof *cur + n);
	*cur = (struct nlmsghdr){.nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags, .nlmsg_len = NLMSG_LENGTH(n)};
	memcpy(NLMSG_DATA(cur), h, n);
	len += NLMSG_ALIGN(cur->nlmsg_len);
	count++;
}

static struct rtattr *attr(int type, const void *d, int n)
{
	struct rtattr *r = (void *)((char *)cur + NLMSG_ALIGN(cur->nlmsg_len));
	r->rta_type = type;
	r->rta_len = RTA_LENGTH(n);
	if (n) memcpy(RTA_DATA(r), d, n);
	cur->nlmsg_len = NLMSG_ALIGN(cur->nlmsg_len) + RTA_ALIGN(r->rta_len);
	len = (char *)cur + cur->nlmsg_len - buf;
	return r;
}

static void nest_end(struct rtattr *r) { r->rta_len = (char *)cur + cur->nlmsg_len - (char *)r; }

static void flush(int fd)
{
	static char in[65536];
	MUST(send(fd, buf, len, 0));
	while (count > 0) {
		int n = MUST(recv(fd, in, sizeof in, 0));
		for (struct nlmsghdr *h = (void *)in; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n))
			if (h->nlmsg_type == NLMSG_ERROR) {
				struct nlmsgerr *e = NLMSG_DATA(h);
				if (e->error) { errno = -e->error; MUST(-1); }
				count--;
			}
	}
	len = 0;
}

static int route_socket(void) { return MUST(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)); }

static void up(int index)
{
	struct ifinfomsg i = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(RTM_NEWLINK, 0, &i, sizeof i);
}

static void address(int index, uint32_t ip)
{
	struct ifaddrmsg a = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = index};
	begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &a, sizeof a);
	attr(IFA_LOCAL, &ip, 4);
	attr(IFA_ADDRESS, &ip, 4);
}

static void make_bridge(void)
{
	int fd = route_socket();
	struct ifinfomsg i = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &i, sizeof i);
	attr(IFLA_IFNAME, "floor0", 7);
	struct rtattr *l = attr(IFLA_LINKINFO, 0, 0);
	attr(IFLA_INFO_KIND, "bridge", 7);
	nest_end(l);
	flush(fd);
	bridge = if_nametoindex("floor0");
	address(bridge, inet_addr("10.9.0.1"));
	flush(fd);
	close(fd);
}

/* One veth pair, its far end made in place in the pod's namespace, one queue each. */
static void veth(int fd, int ns, const char *name)
{
	struct ifinfomsg i = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, far = {0};
	int one = 1;
	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &i, sizeof i);
	attr(IFLA_IFNAME, name, strlen(name) + 1);
	attr(IFLA_MASTER, &bridge, 4);
	attr(IFLA_NUM_TX_QUEUES, &one, 4);
	attr(IFLA_NUM_RX_QUEUES, &one, 4);
	struct rtattr *li = attr(IFLA_LINKINFO, 0, 0);
	attr(IFLA_INFO_KIND, "veth", 5);
	struct rtattr *d = attr(IFLA_INFO_DATA, 0, 0), *p = attr(VETH_INFO_PEER, &far, sizeof far);
	attr(IFLA_IFNAME, "eth0", 5);
	attr(IFLA_NET_NS_FD, &ns, 4);
	attr(IFLA_NUM_TX_QUEUES, &one, 4);
	attr(IFLA_NUM_RX_QUEUES, &one, 4);
	nest_end(p);
	nest_end(d);
	nest_end(li);
	flush(fd);
}

/* ---- the steps ---- */
struct pod { int id, net; pid_t pid; };

static void sandbox(struct pod *p, int rt)
{
	char name[16];
	MUST(unshare(CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS));
	MUST(sethostname("pod", 3));
	p->net = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	int in = route_socket();
	MUST(setns(hostns, CLONE_NEWNET));
	snprintf(name, sizeof name, "fl%d", p->id);
	veth(rt, p->net, name);
	uint32_t gw = inet_addr("10.9.0.1");
	int two = 2;
	up(1);
	up(2);
	address(2, htonl(ntohl(inet_addr("10.9.1.2")) + p->id));
	struct rtmsg r = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_STATIC, .rtm_type = RTN_UNICAST};
	begin(RTM_NEWROUTE, NLM_F_CREATE, &r, sizeof r);
	attr(RTA_GATEWAY, &gw, 4);
	attr(RTA_OIF, &two, 4);
	flush(in);
	close(in);
}

static void put(const char *dir, const char *file, const char *value)
{
	char p[400];
	snprintf(p, sizeof p, "%s/%s", dir, file);
	int fd = open(p, O_WRONLY | O_CLOEXEC);
	if (fd < 0) return; /* a file of the other cgroup version */
	MUST(write(fd, value, strlen(value)));
	close(fd);
}

static void copy_up(const char *dir, const char *file)
{
	char p[400], b[256];
	snprintf(p, sizeof p, "%s/../%s", dir, file);
	int fd = open(p, O_RDONLY | O_CLOEXEC);
	if (fd < 0) return;
	ssize_t n = read(fd, b, sizeof b - 1);
	close(fd);
	if (n <= 0) return;
	b[n] = 0;
	put(dir, file, b);
}

/* Groups with limits in every hierarchy; the thread's children start in v1's because it joins them itself, in v2's by
 * CLONE_INTO_CGROUP. */
static int groups(int id)
{
	char d[300];
	for (int i = 0; i < nv1; i++) {
		snprintf(d, sizeof d, "/sys/fs/cgroup/%s%s/%d", v1[i], group, id);
		MUST(mkdir(d, 0755));
		if (!strcmp(v1[i], "cpuset")) { copy_up(d, "cpuset.cpus"); copy_up(d, "cpuset.mems"); }
		if (!strcmp(v1[i], "memory")) put(d, "memory.limit_in_bytes", "67108864");
		if (!strcmp(v1[i], "cpu")) { put(d, "cpu.shares", "512"); put(d, "cpu.cfs_quota_us", "100000"); }
	}
	snprintf(d, sizeof d, "%s%s/%d", v2, group, id);
	MUST(mkdir(d, 0755));
	put(d, "memory.max", "67108864");
	put(d, "cpu.max", "100000 100000");
	return MUST(open(d, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static void join(const char *sub)
{
	char d[300];
	for (int i = 0; i < nv1; i++) {
		snprintf(d, sizeof d, "/sys/fs/cgroup/%s%s%s", v1[i], group, sub);
		put(d, "tasks", "0");
	}
}

static void inside(int id)
{
	char u[300], o[1200];
	snprintf(u, sizeof u, "%s/%d", work, id);
	snprintf(o, sizeof o, "lowerdir=%s,upperdir=%s/u,workdir=%s/w,volatile", lower, u, u);
	strcat(u, "/m");
	MUST(mount(0, "/", 0, MS_REC | MS_SLAVE, 0));
	MUST(mount("overlay", u, "overlay", 0, o));
	MUST(chdir(u));
	MUST(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	MUST(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k"));
	mkdir("dev/pts", 0755); mkdir("dev/shm", 0755); mkdir("dev/mqueue", 0755);
	MUST(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620"));
	MUST(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k"));
	MUST(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
	MUST(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, 0));
	static const struct { const char *name; int minor; } dev[] = {{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}};
	umask(0);
	for (int i = 0; i < 5; i++) {
		snprintf(o, sizeof o, "dev/%s", dev[i].name);
		MUST(mknod(o, S_IFCHR | 0666, (1 << 8) | dev[i].minor));
	}
	static const char *mask[] = {"proc/kcore", "proc/keys", "proc/timer_list", "proc/sched_debug"}, *ro[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
	for (int i = 0; i < 4; i++) mount("dev/null", mask[i], 0, MS_BIND, 0);
	for (int i = 0; i < 5; i++)
		if (!mount(ro[i], ro[i], 0, MS_BIND | MS_REC, 0)) mount(0, ro[i], 0, MS_BIND | MS_REC | MS_REMOUNT | MS_RDONLY, 0);
	MUST(syscall(SYS_pivot_root, ".", "."));
	MUST(umount2(".", MNT_DETACH));
	MUST(chdir("/"));
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	static char *argv[] = {"/bin/wait", 0};
	execv(argv[0], argv);
	_exit(5);
}

static pid_t spawn(uint64_t flags, int cg)
{
	struct clone_args a = {.flags = flags | (cg >= 0 ? CLONE_INTO_CGROUP : 0), .exit_signal = SIGCHLD, .cgroup = cg < 0 ? 0 : cg};
	return MUST(syscall(SYS_clone3, &a, sizeof a));
}

/* Returns when the program runs: execve closes the pipe. */
static void start(struct pod *p)
{
	static const char *sub[] = {"", "/u", "/w", "/m"};
	char d[300], c;
	int pp[2];
	for (int i = 0; i < 4; i++) {
		snprintf(d, sizeof d, "%s/%d%s", work, p->id, sub[i]);
		MUST(mkdir(d, 0755));
	}
	int cg = groups(p->id);
	snprintf(d, sizeof d, "/%d", p->id);
	join(d);
	MUST(setns(p->net, CLONE_NEWNET));
	MUST(pipe2(pp, O_CLOEXEC));
	p->pid = spawn(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWCGROUP, cg);
	if (!p->pid) inside(p->id);
	close(pp[1]);
	if (read(pp[0], &c, 1)) MUST(-1);
	close(pp[0]);
	close(cg);
	MUST(setns(hostns, CLONE_NEWNET));
	join("");
}

static void exec_true(struct pod *p)
{
	char d[300];
	int fd = MUST(syscall(SYS_pidfd_open, p->pid, 0)), st;
	snprintf(d, sizeof d, "%s%s/%d", v2, group, p->id);
	int cg = MUST(open(d, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	snprintf(d, sizeof d, "/%d", p->id);
	join(d);
	pid_t q = spawn(0, cg);
	if (!q) {
		MUST(setns(fd, CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWPID | CLONE_NEWNS));
		static char *argv[] = {"/bin/true", 0};
		pid_t r = vfork();
		if (!r) { execv(argv[0], argv); _exit(5); }
		waitpid(r, &st, 0);
		_exit(WEXITSTATUS(st));
	}
	waitpid(q, &st, 0);
	if (st) MUST(-1);
	join("");
	close(cg);
	close(fd);
}

static void remove_groups(int id)
{
	char d[300];
	for (int i = 0; i <= nv1; i++) {
		if (i < nv1) snprintf(d, sizeof d, "/sys/fs/cgroup/%s%s/%d", v1[i], group, id);
		else snprintf(d, sizeof d, "%s%s/%d", v2, group, id);
		while (rmdir(d) && errno == EBUSY) usleep(100);
	}
}

static void life(int rt, int id)
{
	struct pod p = {.id = id};
	double t[6] = {now()};
	sandbox(&p, rt); t[1] = now();
	start(&p); t[2] = now();
	usleep(20000);
	double x = now();
	exec_true(&p); t[3] = now();
	double y = now();
	kill(p.pid, SIGKILL); waitpid(p.pid, 0, 0); t[4] = now();
	remove_groups(id); close(p.net); t[5] = now();
	printf("%.0f %.0f %.0f %.0f %.0f\n", t[1] - t[0], t[2] - t[1], t[3] - x, t[4] - y, t[5] - t[4]);
	fflush(stdout);
}

static void burst(int n)
{
	double t = now();
	for (int w = 0; w < 2; w++)
		if (!MUST(fork())) {
			int rt = route_socket();
			for (int i = w; i < n; i += 2) {
				struct pod p = {.id = 10000 + i};
				sandbox(&p, rt);
				start(&p);
				close(p.net);
			}
			_exit(0);
		}
	int st, bad = 0;
	for (int w = 0; w < 2; w++) { wait(&st); bad |= st; }
	if (bad) exit(1);
	printf("%.0f\n", now() - t);
	char d[300];
	snprintf(d, sizeof d, "%s%s", v2, group);
	put(d, "cgroup.kill", "1");
	for (int i = 0; i < n; i++) remove_groups(10000 + i);
}

int main(int argc, char **argv)
{
	if (argc < 4) return 2;
	group = argv[1]; lower = argv[2]; work = argv[3];
	strcpy(v2, "/sys/fs/cgroup");
	if (!access("/sys/fs/cgroup/cpu", F_OK)) { nv1 = 8; strcat(v2, "/unified"); }
	MUST(unshare(CLONE_NEWNS));
	hostns = MUST(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
	make_bridge();
	if (argc > 4) { burst(atoi(argv[4])); return 0; }
	int rt = route_socket(), id = 0;
	char line[16];
	while (fgets(line, sizeof line, stdin)) life(rt, id++);
	return 0;
}
