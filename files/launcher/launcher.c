/*
 * Copyright: the hostnet.qemu authors
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Hands CAP_NET_ADMIN to one fixed command: the Python bridge helper.
 *
 * The kernel ignores file capabilities on a script, and an interpreter that carried one would give it to everybody's
 * programs. So this file carries it (cap_net_admin=p), raises it into the ambient set, which survives the exec of a
 * file without capabilities, and executes COMMAND in a process state of our making. It reads no file and no
 * environment variable, and decides nothing but "do I hold the capability".
 *
 * The order below matters; each step says why it stands where it does.
 */

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LIBRARY "/usr/local/lib/qemu-bridge-helper"
/* argv[0] is the executed path: given a bare name and no PATH, CPython looks for its library in the working directory. */
#define INTERPRETER LIBRARY "/python3"
/* -I: no PYTHON* and no user's site; -S: no .pth file, no sitecustomize; -B: write no bytecode. */
#define COMMAND INTERPRETER, "-I", "-S", "-B", LIBRARY "/qemu-bridge-helper.py"
#define COMMAND_WORDS (sizeof((const char *[]){COMMAND}) / sizeof(const char *))
/* QEMU and libvirt pass three. */
#define ARGUMENTS_MAX 32

#define NET_ADMIN CAP_TO_MASK(CAP_NET_ADMIN)
#define REINSTALL "an administrator repairs it by running the role hostnet.qemu.qemu_bridge again"

/* End with one line, "qemu-bridge-helper: WHAT: what errno means; REMEDY", and status 1. `error` 0 means no errno. */
static _Noreturn void refuse(int error, const char *what, const char *remedy)
{
	const char *words[] = {
		"qemu-bridge-helper: ", what, error ? ": " : "", error ? strerror(error) : "", "; ", remedy, "\n",
	};
	struct iovec line[sizeof(words) / sizeof(words[0])];

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		line[i].iov_base = (char *)words[i];
		line[i].iov_len = strlen(words[i]);
	}
	/* The status says "refused" even where nobody reads the sentence. */
	signal(SIGPIPE, SIG_IGN);
	writev(STDERR_FILENO, line, sizeof(line) / sizeof(line[0]));
	_exit(1);
}

/* Undo what the caller's process state may hold to end, delay or mislead the helper. Limits can't all be undone. */
static void clean_process(void)
{
	static const struct itimerval stopped;
	static const unsigned long default_action[8];
	static const sigset_t no_signal;
	const struct rlimit no_core = {.rlim_cur = 1, .rlim_max = 1};
	struct rlimit files;

	/* First, lest a file that the helper opens becomes its standard error. */
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			refuse(errno, "cannot open /dev/null in place of a closed standard descriptor",
			       "start the helper with descriptors 0, 1 and 2 open");

	/* Timers before signals: none may fire once its signal is deadly again. alarm(2) is ITIMER_REAL. */
	for (int timer = ITIMER_REAL; timer <= ITIMER_PROF; timer++)
		setitimer(timer, &stopped, NULL);

	/*
	 * By system call, since the C library keeps signals 32-34 for itself. An all-zero struct sigaction of the
	 * kernel means SIG_DFL on every architecture. SIGKILL and SIGSTOP refuse, and need nothing.
	 */
	for (int number = 1; number < _NSIG; number++)
		syscall(SYS_rt_sigaction, number, default_action, NULL, _NSIG / 8);
	sigprocmask(SIG_SETMASK, &no_signal, NULL);

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	/*
	 * Not 0: a core_pattern that names a program is run in spite of that, but not for 1 (fs/coredump.c), which is
	 * too little for a file. Where this fails the hard limit is 0 already.
	 */
	setrlimit(RLIMIT_CORE, &no_core);
	umask(077);
	if (chdir("/") != 0)
		refuse(errno, "cannot change to the directory /", "start the helper where / may be searched");
}

/* Say why the kernel has not given us the file's capability, as exactly as we can find out. */
static _Noreturn void explain(void)
{
	struct statvfs mount;
	struct vfs_ns_cap_data attribute;

	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)
		refuse(0, "no CAP_NET_ADMIN: no_new_privs is set, under which file capabilities do nothing",
		       "start QEMU without it (systemd: NoNewPrivileges=no; containers: no no-new-privileges)");
	if (prctl(PR_CAPBSET_READ, CAP_NET_ADMIN, 0, 0, 0) == 0)
		refuse(0, "no CAP_NET_ADMIN: the capability bounding set lacks it, so no file can grant it",
		       "leave it in for what starts QEMU (systemd: CapabilityBoundingSet=; containers: --cap-add=NET_ADMIN)");
	/* The running file itself, not the path of installation: this may be a copy. */
	if (statvfs("/proc/self/exe", &mount) == 0 && mount.f_flag & ST_NOSUID)
		refuse(0, "no CAP_NET_ADMIN: this program is on a nosuid mount, where file capabilities do nothing",
		       "an administrator mounts that file system without nosuid");
	if (getxattr("/proc/self/exe", "security.capability", &attribute, sizeof(attribute)) < 0) {
		if (errno == ENODATA)
			refuse(0, "no CAP_NET_ADMIN: this file has no capability (copying, chown and most archivers drop it)",
			       REINSTALL ", or: setcap cap_net_admin=p /usr/local/libexec/qemu-bridge-helper");
		refuse(errno, "no CAP_NET_ADMIN: cannot read security.capability of /proc/self/exe", REINSTALL);
	}
	if (!(le32toh(attribute.data[CAP_TO_INDEX(CAP_NET_ADMIN)].permitted) & NET_ADMIN))
		refuse(0, "no CAP_NET_ADMIN: the file capabilities of this file do not permit it", REINSTALL);
	refuse(0, "no CAP_NET_ADMIN, though this file permits it: a tracer, a user namespace or no_file_caps withholds it",
	       "start QEMU without strace or gdb, outside of rootless containers, on a kernel booted without no_file_caps");
}

/* Hold CAP_NET_ADMIN and nothing else, in a way that the next exec keeps and no exec after it widens. */
static void keep_net_admin(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, sets) != 0)
		refuse(errno, "cannot read my capabilities (capget)", "allow this system call");
	if (!(sets[CAP_TO_INDEX(CAP_NET_ADMIN)].permitted & NET_ADMIN))
		explain();
	/* The kernel clears the ambient set at an exec where these differ, and it would be unclear whose rights count. */
	if (getuid() != geteuid() || getgid() != getegid())
		refuse(0, "the real and the effective user or group differ",
		       "start the helper from a program that is neither setuid nor setgid");

	/*
	 * For uid 0 an exec means all capabilities again. no_new_privs, below, cuts that down to what we hold; where
	 * CAP_SETPCAP allows, uid 0 loses that meaning for good and the bounding set shrinks. Everyone else is refused
	 * both, and needs neither. This comes before CAP_SETPCAP is given up.
	 */
	for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (cap != CAP_NET_ADMIN && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0)
			break;
	prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) | SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0);

	memset(sets, 0, sizeof(sets));
	sets[CAP_TO_INDEX(CAP_NET_ADMIN)].permitted = NET_ADMIN;
	sets[CAP_TO_INDEX(CAP_NET_ADMIN)].inheritable = NET_ADMIN;
	if (syscall(SYS_capset, &header, sets) != 0)
		refuse(errno, "cannot reduce my capabilities to CAP_NET_ADMIN (capset)", "allow this system call");
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0) != 0) {
		int error = errno;

		if (prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) & SECBIT_NO_CAP_AMBIENT_RAISE)
			refuse(error, "cannot raise CAP_NET_ADMIN into the ambient set: securebits has no_cap_ambient_raise",
			       "start QEMU without this bit (systemd: SecureBits=)");
		refuse(error, "cannot raise CAP_NET_ADMIN into the ambient set (prctl)", "Linux 4.3 or later is needed");
	}
	/* An ambient capability survives it; setuid files and file capabilities mean nothing to the helper from here on. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		refuse(errno, "cannot set no_new_privs (prctl)", "allow this system call");
}

int main(int argc, char **argv)
{
	/* Nothing of the caller's: a variable that is harmless here may steer the interpreter or its C library. */
	static char *const environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", NULL};
	const char *command[COMMAND_WORDS + ARGUMENTS_MAX + 1] = {COMMAND};

	clean_process();
	if (argc > 1 + ARGUMENTS_MAX)
		refuse(0, "more than 32 arguments", "a bridge helper takes --use-vnet, --br=BRIDGE and --fd=DESCRIPTOR");
	/* From 1: argv[0] is the caller's word. Before Linux 5.18 there may be none at all, argc being 0. */
	for (int i = 1; i < argc; i++)
		command[COMMAND_WORDS + (size_t)i - 1] = argv[i];
	keep_net_admin();
	execve(INTERPRETER, (char *const *)command, environment);
	refuse(errno, "cannot execute " INTERPRETER, REINSTALL);
}
