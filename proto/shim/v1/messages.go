// Package v1 is the protocol between the daemon (berth-cri) and its supervisors (berth-shim): the messages, and
// the connection that carries them together with open file descriptors.
//
// A shim listens on one Unix stream socket below the daemon's state directory (mode 0600, directory 0700; both
// ends check SO_PEERCRED for uid 0). Every message is a frame: see [Conn]. Bodies are JSON, so that a newer side
// may add fields which an older one ignores; a change that an older side must not ignore raises [Version].
//
// Who owns what:
//
//   - The daemon makes every cgroup and passes it as descriptors. It signals, freezes, kills and measures by
//     itself (pidfd, cgroup files) and needs no answer of a shim for that.
//   - The shim is the parent of the containers, the writer of their CRI log files and of their exit records.
//   - Both hold each container's pidfd, the read ends of its log pipes (or its console) and the pod's namespace
//     descriptors, so that one's death loses nothing: a new shim gets them back by [MethodAdoptPod] and
//     [MethodAdoptContainer].
//
// The package imports the standard library, golang.org/x/sys and proto/errs only.
package v1

import (
	"encoding/json"
	"time"
)

// Version is the protocol version. A side that meets another one refuses the connection in Hello.
const Version = 1

// The methods of a shim. Each names its request and reply type below; a method without a reply type answers {}.
// All are idempotent in the sense given at the request type.
const (
	MethodHello          = "Hello"          // Hello -> HelloReply
	MethodRunPod         = "RunPod"         // RunPod -> RunPodReply, fds
	MethodRemovePod      = "RemovePod"      // PodRef
	MethodPutSeccomp     = "PutSeccomp"     // PutSeccomp
	MethodStart          = "Start"          // Start -> StartReply, fds
	MethodExec           = "Exec"           // Exec -> ExecReply, fds
	MethodAttach         = "Attach"         // Attach
	MethodReopenLog      = "ReopenLog"      // ContainerRef
	MethodDelete         = "Delete"         // ContainerRef
	MethodHandles        = "Handles"        // HandlesRequest -> HandlesReply, fds
	MethodAdoptPod       = "AdoptPod"       // AdoptPod, fds
	MethodAdoptContainer = "AdoptContainer" // AdoptContainer, fds
	MethodDrain          = "Drain"          // {}: no new pods; exit when the last pod is removed
)

// The events a shim sends to every connected daemon that has said Hello.
const (
	EventExited = "Exited" // Exited
	EventOOM    = "OOM"    // OOM
	// EventStdinClosed (StdinClosed) says that the shim has closed its end of a container's standard input, because
	// the first attached input of a StdinOnce container has ended. The container sees the end of file when the
	// daemon has closed its duplicate (HandleStdin) too.
	EventStdinClosed = "StdinClosed"
)

// Hello opens a connection. The reply lists all the shim has, so that a daemon which reconnects misses no event:
// events follow the reply in order.
type Hello struct {
	Version int `json:"version"`
}

// HelloReply is what a shim is and holds.
type HelloReply struct {
	Version    int              `json:"version"`
	Pid        int              `json:"pid"`
	BootID     string           `json:"bootID"`
	Build      string           `json:"build"` // version of the shim's binary, for `berth status`
	Draining   bool             `json:"draining,omitempty"`
	Pods       []PodState       `json:"pods,omitempty"`
	Containers []ContainerState `json:"containers,omitempty"`
}

// PodState is a pod a shim holds namespaces for.
type PodState struct {
	ID         string   `json:"id"`
	Namespaces []string `json:"namespaces,omitempty"` // kinds held: net, ipc, uts, pid, user
	InitPid    int      `json:"initPid,omitempty"`    // pid 1 of the pod's own pid namespace, if it has one
}

// ContainerState is a container a shim is the supervisor of. It stays listed after its exit until Delete.
type ContainerState struct {
	ID        string    `json:"id"`
	Pod       string    `json:"pod"`
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Exit      *Exit     `json:"exit,omitempty"`
	Adopted   bool      `json:"adopted,omitempty"`
}

// IDMapping is one line of uid_map or gid_map.
type IDMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

// Cgroups says which cgroup descriptors come with a message, in this order before all others: the directory in
// the unified hierarchy (for CLONE_INTO_CGROUP, Linux 5.7), then one `tasks` file, open for writing, for each v1
// hierarchy; the forking thread writes 0 to each before it clones and returns to its own after.
type Cgroups struct {
	Unified bool `json:"unified,omitempty"`
	V1      int  `json:"v1,omitempty"`
}

// Count is the number of descriptors announced.
func (c Cgroups) Count() int {
	if c.Unified {
		return c.V1 + 1
	}
	return c.V1
}

// RunPod makes the namespaces of a pod. Repeating it for a pod that exists returns the same descriptors.
// fds: Cgroups, used only when "pid" is among the namespaces: the pod's init process runs there.
type RunPod struct {
	ID          string            `json:"id"`
	Namespaces  []string          `json:"namespaces"` // to make, among net, ipc, uts, pid
	Hostname    string            `json:"hostname,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"` // dotted keys; only of a namespace that is made here
	UIDMappings []IDMapping       `json:"uidMappings,omitempty"`
	GIDMappings []IDMapping       `json:"gidMappings,omitempty"` // not empty: a user namespace that owns the others
	Cgroups     Cgroups           `json:"cgroups"`
}

// RunPodReply comes with one descriptor for each of Namespaces, in that order ("user" among them if one was
// made), then the pidfd of the pod's init if InitPid is not 0.
type RunPodReply struct {
	Namespaces []string `json:"namespaces"`
	InitPid    int      `json:"initPid,omitempty"`
}

// PodRef names a pod. RemovePod of an unknown pod succeeds, and refuses it for a minute: RunPod or AdoptPod may have been sent
// before and come after; of one that is being made it waits for that; of one whose containers still run it is a failed precondition. It ends the pod's init and closes the shim's hold on the namespaces.
type PodRef struct {
	ID string `json:"id"`
}

// ContainerRef names a container. Delete of an unknown one succeeds; of a running one it is a failed precondition.
type ContainerRef struct {
	ID string `json:"id"`
}

// PutSeccomp gives the shim a profile to compile, once; Start and Exec then name it by its digest.
type PutSeccomp struct {
	Digest  string          `json:"digest"`
	Profile json.RawMessage `json:"profile"` // runtime-spec linux.seccomp
}

// Container is what the supervisor must know of a container for its whole life, whoever started it.
type Container struct {
	ID  string `json:"id"`
	Pod string `json:"pod"`
	// LogDir and LogName place the CRI log file: LogName is resolved beneath LogDir without following links.
	// An empty LogName drops the output.
	LogDir  string `json:"logDir,omitempty"`
	LogName string `json:"logName,omitempty"`
	// Stdin keeps the container's standard input open for Attach; with StdinOnce the end of the first attached
	// input closes it. Without Stdin it is /dev/null.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	Terminal  bool `json:"terminal,omitempty"`
	// OOMFile counts the OOM kills of the container's memory cgroup: memory.events (v2) or memory.oom_control
	// (v1), read at exit. Empty: not known.
	OOMFile string `json:"oomFile,omitempty"`
	// ExitFile is where the exit record (a sealed JSON Exit) is written before the event is sent.
	ExitFile string `json:"exitFile"`
}

// Rootfs is how the root file system of a container is made.
type Rootfs struct {
	// Lower are the image layers, topmost first; Upper and Work the writable ones, of one file system.
	// Without Upper the rootfs is read-only.
	Lower []string `json:"lower"`
	Upper string   `json:"upper,omitempty"`
	Work  string   `json:"work,omitempty"`
	// Path replaces all of the above by a directory that is used as it is.
	Path string `json:"path,omitempty"`
}

// Start creates and starts a container. A second Start of the same id is AlreadyExists. On an error nothing is
// left: no process, no mount, no record.
//
// fds: Cgroups. Reply fds: see Handles.
type Start struct {
	Container
	Spec json.RawMessage `json:"spec"` // OCI runtime-spec config.json; linux.seccomp absent when Seccomp is set
	// Join are the kinds of the pod's namespaces that the container enters (net, ipc, uts, user, pid); the spec
	// lists them without a path. A kind that the spec lists and Join does not is made anew; one the spec does
	// not list is the host's.
	Join []string `json:"join,omitempty"`
	// PidOf enters the pid namespace of another container of this pod.
	PidOf string `json:"pidOf,omitempty"`
	// Seccomp is the digest of a profile given by PutSeccomp; NotFound if the shim does not have it.
	Seccomp string  `json:"seccomp,omitempty"`
	Rootfs  Rootfs  `json:"rootfs"`
	Cgroups Cgroups `json:"cgroups"`
	// OCI runs the container by an OCI command line runtime instead of the shim's own executor. It comes from
	// the daemon's configuration alone.
	OCI *OCIRuntime `json:"oci,omitempty"`
	// Limit is how long the process may take to its execve; then it is killed and the answer is DeadlineExceeded.
	// 0, and anything above, is two minutes.
	Limit time.Duration `json:"limit,omitempty"`
}

// OCIRuntime is a RuntimeClass handler that is a program with runc's command line.
type OCIRuntime struct {
	Binary string   `json:"binary"` // absolute path
	Args   []string `json:"args,omitempty"`
	Root   string   `json:"root"`   // its --root
	Bundle string   `json:"bundle"` // directory for config.json and the rootfs mount, made and removed by the shim
}

// The names of descriptors in Handles.
const (
	HandlePidfd   = "pidfd"
	HandleStdin   = "stdin"   // write end of the container's standard input
	HandleStdout  = "stdout"  // read end
	HandleStderr  = "stderr"  // read end
	HandleConsole = "console" // pty master, instead of the other three
)

// StartReply comes with the descriptors that Handles names, in that order.
type StartReply struct {
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Handles   []string  `json:"handles"`
}

// Exec starts a further process in a running container. Not found: no such container; failed precondition: it
// does not run.
//
// fds: Cgroups, then one for each of Stdio, which the process gets (a stream that is not named is /dev/null).
// With a terminal Stdio is empty and the reply carries the console.
type Exec struct {
	Container string          `json:"container"`
	ID        string          `json:"id"`      // unique within the container; names it in Exited
	Process   json.RawMessage `json:"process"` // runtime-spec process
	Seccomp   string          `json:"seccomp,omitempty"`
	Cgroups   Cgroups         `json:"cgroups"`
	Stdio     []string        `json:"stdio,omitempty"`
	Limit     time.Duration   `json:"limit,omitempty"` // as Start's
}

// ExecReply comes with the descriptors that Handles names: pidfd and, with a terminal, console.
type ExecReply struct {
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Handles   []string  `json:"handles"`
}

// Attach copies a container's streams to and from descriptors: fds, one for each of Stdio ("stdin": the shim
// reads from it; "stdout", "stderr": it writes). The shim closes them when the container has ended and its output
// is written. A reader that does not keep up loses its attachment, never stalls the container.
type Attach struct {
	Container string   `json:"container"`
	Stdio     []string `json:"stdio"`
}

// HandlesRequest asks for duplicates of what the shim holds for one pod or one container, after a daemon restart.
type HandlesRequest struct {
	Pod       string `json:"pod,omitempty"`
	Container string `json:"container,omitempty"`
}

// HandlesReply comes with the descriptors named: for a pod its namespaces and then, if it has an init, "pidfd";
// for a container those of StartReply (streams that have ended are left out).
type HandlesReply struct {
	Names []string `json:"names"`
}

// AdoptPod gives a new shim the namespaces of a pod whose shim died. fds: one for each of Namespaces, then the
// pidfd of the pod's init if InitPid is not 0.
type AdoptPod struct {
	ID         string   `json:"id"`
	Namespaces []string `json:"namespaces"`
	InitPid    int      `json:"initPid,omitempty"`
}

// AdoptContainer gives a new shim a container whose shim died. Repeating it is harmless; Aborted: an earlier request for it is
// not answered yet. A log that cannot be opened is no error: the output is dropped and counted until it can be. The exit code of an adopted container comes from
// PIDFD_INFO_EXIT (Linux 6.15), else it is unknown. fds: one for each of Handles.
type AdoptContainer struct {
	Container
	Pid       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Handles   []string  `json:"handles"`
	// OCI is the runtime of Start, which is asked for further execs and for the removal.
	OCI *OCIRuntime `json:"oci,omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Code      int       `json:"code"`             // exit status, or 128+Signal
	Signal    int       `json:"signal,omitempty"` // 0: it called exit
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Unknown   bool      `json:"unknown,omitempty"` // nobody saw the code: Code is 255
	At        time.Time `json:"at"`
}

// Exited says that a container (Exec empty) or an exec ended. A container's event is sent after its exit record
// is in ExitFile and its output is in the log, or a quarter of a second after the exit if something it left
// behind holds the log pipe open.
type Exited struct {
	Container string `json:"container"`
	Exec      string `json:"exec,omitempty"`
	Exit      Exit   `json:"exit"`
}

// StdinClosed is the body of EventStdinClosed.
type StdinClosed struct {
	Container string `json:"container"`
}

// OOM says that the kernel killed a process in a container for lack of memory; the container may go on.
type OOM struct {
	Container string    `json:"container"`
	At        time.Time `json:"at"`
}
