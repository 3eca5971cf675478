package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	v1 "github.com/berth-project/berth/proto/cniagent/v1"
)

// pluginType is the plugin whose work an agent may do; its configuration says where in the key "agentSocket".
const pluginType = "berth"

// answerTime is how long an agent may take: the plugin's patience with the lock, and as much again. One that is stuck is
// treated as one that died.
const answerTime = 20 * time.Second

// dialTime is how long an agent may take to accept. One that is not there refuses at once.
const dialTime = time.Second

// agentExec is libcni's way to run a plugin: by a resident agent where the plugin's configuration names one, else, and
// whenever that cannot be asked, by executing it. Both do the same on the same state, so that an agent which dies in the
// midst costs the time of one execution.
type agentExec struct {
	*invoke.DefaultExec
	log *slog.Logger
}

func newExec(log *slog.Logger) invoke.Exec {
	return agentExec{&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}}, log}
}

// ExecPlugin implements [invoke.Exec].
func (e agentExec) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	socket := agentSocket(path, stdin)
	if socket == "" {
		return e.DefaultExec.ExecPlugin(ctx, path, stdin, env)
	}
	reply, asked, err := ask(ctx, socket, v1.Request{Version: v1.Version, Env: cniVariables(env), Stdin: stdin, Netns: namespaceOf(env)})
	switch {
	case err == nil && reply.Refused == "":
		if len(reply.Stderr) > 0 {
			e.log.Warn("CNI agent", "says", strings.TrimSpace(string(reply.Stderr)))
		}
		return reply.Stdout, pluginError(reply)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("CNI agent %s: %w", socket, ctx.Err())
	case err == nil:
		asked, err = false, errors.New(reply.Refused)
	}
	e.log.Info("the plugin is executed, the agent did not serve", "agent", socket, "error", err)
	if i := slices.Index(env, "CNI_COMMAND=ADD"); asked && i >= 0 { // it may have come as far as it likes
		undo := slices.Clone(env)
		undo[i] = "CNI_COMMAND=DEL"
		if _, err := e.DefaultExec.ExecPlugin(ctx, path, stdin, undo); err != nil {
			return nil, fmt.Errorf("undo what the agent began: %w", err)
		}
	}
	return e.DefaultExec.ExecPlugin(ctx, path, stdin, env)
}

// agentSocket is where the plugin's work is done; "" if by executing it.
func agentSocket(path string, stdin []byte) string {
	if filepath.Base(path) != pluginType {
		return ""
	}
	var conf struct {
		AgentSocket string `json:"agentSocket"`
	}
	if json.Unmarshal(stdin, &conf) != nil || !filepath.IsAbs(conf.AgentSocket) {
		return "" // the plugin says what is wrong
	}
	return conf.AgentSocket
}

func cniVariables(env []string) (out []string) {
	for _, kv := range env {
		if strings.HasPrefix(kv, "CNI_") {
			out = append(out, kv)
		}
	}
	return out
}

// namespaceOf identifies the pod's, where it has one.
func namespaceOf(env []string) *v1.File {
	for _, kv := range env {
		if path, ok := strings.CutPrefix(kv, "CNI_NETNS="); ok && path != "" {
			f, err := v1.Identify(path)
			if err != nil {
				return nil // the plugin says what is wrong
			}
			return f
		}
	}
	return nil
}

// ask puts one request. asked says that it was sent, whole or in part.
func ask(ctx context.Context, socket string, req v1.Request) (reply v1.Reply, asked bool, err error) {
	d := net.Dialer{Timeout: dialTime}
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return reply, false, err
	}
	c := conn.(*net.UnixConn) //nolint:errcheck // what "unix" gives
	defer c.Close()           //nolint:errcheck // answered, or not
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := errors.Join(v1.CheckPeer(c), c.SetDeadline(time.Now().Add(answerTime))); err != nil {
		return reply, false, err
	}
	if err := v1.Write(c, req); err != nil {
		return reply, true, err
	}
	return reply, true, v1.Read(c, &reply)
}

// pluginError is what the plugin printed, as libcni makes it of an execution's.
func pluginError(r v1.Reply) error {
	if r.Exit == 0 {
		return nil
	}
	e := &types.Error{}
	if err := json.Unmarshal(r.Stdout, e); err != nil {
		e.Msg = fmt.Sprintf("the agent's answer is no error of a plugin: %q", r.Stdout)
	}
	return e
}
