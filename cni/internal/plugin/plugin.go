// Package plugin is the edge of berth-cni: the protocol between a runtime and a CNI plugin. It reads the
// environment and stdin it is given, checks both before anything is touched, calls the story for the verb in
// package podnet, and writes one result or one error as JSON. It holds no network logic.
//
// It differs from the reference library's skeleton where that is stricter or later than the specification: the
// namespace is checked before the verb runs, CNI_PATH is not required, and an error names the cniVersion it is in.
package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/cni/internal/dropin"
	"github.com/berth-project/berth/cni/internal/netconf"
	"github.com/berth-project/berth/cni/internal/podnet"
	"github.com/berth-project/berth/cni/internal/spec"
	"github.com/berth-project/berth/cni/internal/state"
)

// Invocation is one start of the plugin.
type Invocation struct {
	// Name is argv[0]: under the name of an upstream plugin the binary is that plugin.
	Name   string
	Getenv func(string) string
	// Environ is the whole environment.
	Environ []string
	// Turn is given by a process that goes on after it.
	Turn   *state.Turn
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// call is a verb with what it was given.
type call struct {
	Invocation
	verb       string
	attachment podnet.Attachment
	args       string
	conf       *netconf.Config
}

// Run serves the invocation and returns the exit code.
func Run(in Invocation) int {
	c := &call{Invocation: in, verb: in.Getenv("CNI_COMMAND")}
	if c.verb == "" {
		_, _ = fmt.Fprintf(in.Stderr, "CNI %s plugin of berth-cni\nCNI protocol versions supported: %s\n", c.typ(), strings.Join(c.versions(), ", "))
		return 0
	}
	out, err := c.serve()
	if err != nil {
		out = c.encodeError(err)
	}
	if _, werr := in.Stdout.Write(out); werr != nil {
		_, _ = fmt.Fprintf(in.Stderr, "berth-cni: write the answer: %v\n", werr)
		return 1
	}
	if err != nil {
		return 1
	}
	return 0
}

func (c *call) encodeError(err error) []byte {
	e := spec.AsError(err)
	version := spec.Versions()[len(spec.Versions())-1]
	if c.conf != nil && slices.Contains(spec.Versions(), c.conf.CNIVersion) {
		version = c.conf.CNIVersion
	}
	b, jerr := json.Marshal(struct {
		CNIVersion string    `json:"cniVersion"`
		Code       spec.Code `json:"code"`
		Msg        string    `json:"msg"`
		Details    string    `json:"details,omitempty"`
	}{version, e.Code, e.Msg, e.Details})
	if jerr != nil { // strings and a number always encode
		return []byte(`{"code":999,"msg":"cannot encode the error"}`)
	}
	return append(b, '\n')
}

// serve checks the request and dispatches it by verb, then by type.
func (c *call) serve() ([]byte, error) {
	if c.verb == "VERSION" {
		return c.version()
	}
	if err := c.environment(); err != nil {
		return nil, err
	}
	stdin, err := io.ReadAll(io.LimitReader(c.Stdin, netconf.MaxSize+1))
	if err != nil {
		return nil, spec.Errorf(spec.CodeIO, "read the network configuration from stdin: %w", err)
	}
	typ := c.typ()
	if typ == "berth" {
		typ = netconf.TypeOf(stdin)
	}
	switch {
	case typ == "loopback":
		if c.conf, err = netconf.ParseLoopback(stdin); err != nil {
			return nil, err
		}
		return c.loopback()
	case dropin.Knows(typ):
		return c.dropin(typ, stdin)
	}
	c.conf, err = netconf.Parse(stdin)
	if err != nil {
		return nil, err
	}
	if c.conf.Type != "" && c.conf.Type != "berth" {
		return nil, spec.Errorf(spec.CodeField, "unsupported key \"type\" with value %q: this plugin is \"berth\", \"loopback\" and %s", c.conf.Type, strings.Join(dropin.Types(), ", "))
	}
	return c.berth()
}

// typ is what the binary is by its name; under a name of its own it is type berth.
func (c *call) typ() string {
	name := filepath.Base(c.Name)
	if name == "loopback" || dropin.Knows(name) {
		return name
	}
	return "berth"
}

// dropin serves a verb of an upstream type.
func (c *call) dropin(typ string, stdin []byte) ([]byte, error) {
	d := &dropin.Call{
		Verb: c.verb, Type: typ, Attachment: c.attachment, Args: c.args, Path: c.Getenv("CNI_PATH"),
		Env:   slices.DeleteFunc(slices.Clone(c.Environ), func(kv string) bool { return strings.HasPrefix(kv, "CNI_COMMAND=") }),
		Stdin: stdin, Log: c.Stderr,
	}
	out, err := d.Serve()
	c.conf = &netconf.Config{CNIVersion: d.Version()}
	return out, err
}

func (c *call) versions() []string { return dropin.Versions(c.typ()) }

func (c *call) version() ([]byte, error) {
	b, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "supportedVersions": c.versions()})
	return append(b, '\n'), err
}

// environment reads and checks the variables. What DEL, GC and STATUS do not need may be missing there.
func (c *call) environment() error {
	c.attachment = podnet.Attachment{ContainerID: c.Getenv("CNI_CONTAINERID"), IfName: c.Getenv("CNI_IFNAME"), Netns: c.Getenv("CNI_NETNS")}
	c.args = c.Getenv("CNI_ARGS")
	switch c.verb {
	case "GC", "STATUS":
		return nil
	case "ADD", "DEL", "CHECK":
	default:
		return spec.Errorf(spec.CodeEnvironment, "CNI_COMMAND %q is none of ADD, DEL, CHECK, GC, STATUS, VERSION", c.verb)
	}
	var missing []string
	if c.attachment.ContainerID == "" {
		missing = append(missing, "CNI_CONTAINERID")
	}
	if c.attachment.IfName == "" {
		missing = append(missing, "CNI_IFNAME")
	}
	if c.attachment.Netns == "" && c.verb != "DEL" {
		missing = append(missing, "CNI_NETNS")
	}
	if missing != nil {
		return spec.Errorf(spec.CodeEnvironment, "required environment variables are missing: %s", strings.Join(missing, ", "))
	}
	if !netconf.ValidID(c.attachment.ContainerID) || len(c.attachment.ContainerID) > 1024 {
		return spec.Errorf(spec.CodeEnvironment, "CNI_CONTAINERID %.80q must match [a-zA-Z0-9][a-zA-Z0-9_.-]*", c.attachment.ContainerID)
	}
	if !netconf.ValidIfName(c.attachment.IfName) && c.attachment.IfName != "lo" {
		return spec.Errorf(spec.CodeEnvironment, "CNI_IFNAME %.80q is not the name of an interface", c.attachment.IfName)
	}
	return nil
}

// since refuses a verb in a version that has not got it.
func (c *call) since(version string) error {
	if spec.AtLeast(c.conf.CNIVersion, version) {
		return nil
	}
	return spec.Errorf(spec.CodeVersion, "%s needs cniVersion %s or later, the configuration says %s", c.verb, version, c.conf.CNIVersion)
}
