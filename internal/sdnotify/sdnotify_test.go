package sdnotify_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth/internal/sdnotify"
)

func TestSend(t *testing.T) {
	sdnotify.Send("READY=1") // nobody listens
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test's
	t.Setenv("NOTIFY_SOCKET", path)
	sdnotify.Send("READY=1")
	b := make([]byte, 64)
	if err := l.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
