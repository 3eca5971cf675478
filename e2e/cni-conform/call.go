package conform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// call is one start of a plugin.
type call struct {
	verb, file, id, ifname, netns, args, stdin string
	// without are variables that are not set; prefix is put before the command (strace).
	without []string
	prefix  []string
}

// fault is an error as the specification writes it.
type fault struct {
	CNIVersion string `json:"cniVersion"`
	Code       int    `json:"code"`
	Msg        string `json:"msg"`
	Details    string `json:"details"`
}

// Error implements error.
func (f *fault) Error() string { return fmt.Sprintf("code %d: %s %s", f.Code, f.Msg, f.Details) }

var errKilled = errors.New("killed")

// patience bounds one call.
const patience = 60 * time.Second

// exec starts the plugin in the host's namespace. An error is a *fault, errKilled, or says what of the protocol was
// violated.
func (t *T) exec(c call) ([]byte, error) {
	if c.ifname == "" {
		c.ifname = "eth0"
		if t.Name() == "loopback" {
			c.ifname = "lo"
		}
	}
	env := map[string]string{
		"CNI_COMMAND": c.verb, "CNI_CONTAINERID": c.id, "CNI_IFNAME": c.ifname, "CNI_NETNS": c.netns, "CNI_ARGS": c.args,
		"CNI_PATH": t.Dir, "PATH": os.Getenv("PATH"),
	}
	for _, w := range c.without {
		delete(env, w)
	}
	argv := append(append([]string(nil), c.prefix...), filepath.Join(t.Dir, c.file))
	cmd := exec.Command(argv[0], argv[1:]...)
	for k, v := range env {
		if v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.Stdin = strings.NewReader(c.stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := t.host.do(func() error {
		if err := cmd.Start(); err != nil {
			return err
		}
		timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		return cmd.Wait()
	})
	var exit *exec.ExitError
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		if c.verb == "ADD" && !json.Valid(stdout.Bytes()) {
			return nil, fmt.Errorf("ADD succeeds with a result that is no JSON: %.100q", stdout.String())
		}
		return stdout.Bytes(), nil
	}
	if !errors.As(err, &exit) {
		return nil, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && (ws.Signaled() || ws.ExitStatus() == 137) {
		return nil, errKilled
	}
	f := &fault{}
	if jerr := json.Unmarshal(stdout.Bytes(), f); jerr != nil || f.Code == 0 && f.Msg == "" {
		return nil, fmt.Errorf("exit code %d without an error as the specification writes it: stdout %.100q, stderr %.200q", exit.ExitCode(), stdout.String(), stderr.String())
	}
	return stdout.Bytes(), f
}

// Name is the subject's.
func (t *T) Name() string { return t.Subject.Name }

func code(err error) int {
	var f *fault
	switch {
	case err == nil:
		return 0
	case errors.As(err, &f):
		return f.Code
	}
	return -1
}

// attachment is a container with the results of its chain.
type attachment struct {
	id      string
	ns      *Netns
	version string
	confs   []string // of each plugin, with prevResult
	results [][]byte
}

// conf is the i-th plugin's configuration.
func (t *T) conf(i int, version string, prev []byte, more Conf) string {
	c := t.Chain[i].with(Conf{"cniVersion": version, "name": "net1"}).with(more)
	if prev != nil {
		c = c.with(Conf{"prevResult": json.RawMessage(prev)})
	}
	return c.json()
}

// base attaches a container to all plugins but the last.
func (t *T) base(version string) (*attachment, []byte) {
	t.next++
	a := &attachment{id: fmt.Sprintf("container-%d", t.next), ns: t.container(), version: version}
	var prev []byte
	for i := range t.Chain[:len(t.Chain)-1] {
		conf := t.conf(i, version, prev, nil)
		out, err := t.exec(call{verb: "ADD", file: t.file(t.Chain[i]), id: a.id, netns: a.ns.Path, stdin: conf})
		if err != nil {
			t.Fatalf("ADD of the %s before it: %v", t.file(t.Chain[i]), err)
		}
		prev = out
		a.confs, a.results = append(a.confs, conf), append(a.results, out)
	}
	return a, prev
}

// tryAttach attaches a container; more goes into the last plugin's configuration.
func (t *T) tryAttach(version string, more Conf) (*attachment, error) {
	a, prev := t.base(version)
	conf := t.conf(len(t.Chain)-1, version, prev, more)
	out, err := t.verb(a, "ADD", conf)
	a.confs, a.results = append(a.confs, conf), append(a.results, out)
	return a, err
}

func (t *T) attach(version string, more Conf) *attachment {
	a, err := t.tryAttach(version, more)
	if err != nil {
		t.Fatalf("ADD, version %s: %v", version, err)
	}
	return a
}

// verb executes the last plugin.
func (t *T) verb(a *attachment, verb, conf string) ([]byte, error) {
	return t.exec(call{verb: verb, file: t.file(t.last()), id: a.id, netns: a.ns.Path, stdin: conf})
}

// final is the last result, which CHECK and DEL get.
func (a *attachment) final() []byte { return a.results[len(a.results)-1] }

// withPrev is a configuration with another prevResult; nil takes it out.
func withPrev(conf string, prev []byte) string {
	var c Conf
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		panic(err) // written by this package
	}
	delete(c, "prevResult")
	if prev != nil {
		c["prevResult"] = json.RawMessage(prev)
	}
	return c.json()
}

// last is the configuration of the last plugin with the final result, as a runtime sends it.
func (t *T) finalConf(a *attachment) string {
	return withPrev(a.confs[len(a.confs)-1], a.final())
}

// detach deletes all plugins' part in reverse order. change, if not nil, alters each call.
func (t *T) detach(a *attachment, change func(*call)) {
	for i := len(a.confs) - 1; i >= 0; i-- {
		prev := a.final()
		c := call{verb: "DEL", file: t.file(t.Chain[i]), id: a.id, netns: a.ns.Path, stdin: withPrev(a.confs[i], prev)}
		if change != nil {
			change(&c)
		}
		if _, err := t.exec(c); err != nil {
			t.Failf("DEL of %s: %v", c.file, err)
		}
	}
}
