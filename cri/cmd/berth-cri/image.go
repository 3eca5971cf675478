package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/berth-project/berth/cri/internal/image"
)

// imageCommand is `berth-cri image …`: it speaks to the running daemon on its debug socket, so that the store has
// one owner.
func imageCommand(ctx context.Context, path string, args []string, out io.Writer) error {
	conf, err := load(path)
	if err != nil {
		return err
	}
	if conf.DebugSocket == "" {
		return errors.New("image: debug_socket is empty in the configuration; set it")
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", conf.DebugSocket)
	}}}
	switch {
	case len(args) == 2 && args[0] == "import":
		return importFile(ctx, client, args[1], out)
	case len(args) >= 3 && args[0] == "export":
		return exportFile(ctx, client, args[1], args[2:])
	}
	return errors.New("usage: berth-cri image import FILE | image export FILE REF…")
}

func importFile(ctx context.Context, client *http.Client, file string, out io.Writer) error {
	f, err := os.Open(file) //nolint:gosec // the operator's own choice
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://berth/images/import", f)
	if err != nil {
		return err
	}
	resp, err := answer(client.Do(req))
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	_, err = io.Copy(out, resp.Body)
	return err
}

// exportFile leaves no half-written archive behind.
func exportFile(ctx context.Context, client *http.Client, file string, refs []string) (err error) {
	q := url.Values{"ref": refs}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/images/export?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := answer(client.Do(req))
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	f, err := os.CreateTemp(".", ".berth-export-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, cerr := io.Copy(f, resp.Body)
	if resp.Trailer.Get("Berth-Error") != "" {
		cerr = errors.Join(cerr, errors.New(resp.Trailer.Get("Berth-Error")))
	}
	if err := errors.Join(cerr, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func answer(resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		return nil, fmt.Errorf("is berth-cri running? %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	text, rerr := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	return nil, errors.Join(errors.New(string(text)), rerr, resp.Body.Close())
}

// archives is the part of the image service that the debug socket offers.
type archives interface {
	Import(ctx context.Context, r io.Reader) ([]*image.Image, error)
	Export(ctx context.Context, w io.Writer, refs []string) error
}

func serveImport(a archives) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		images, err := a.Import(req.Context(), req.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		for _, i := range images {
			if err := json.NewEncoder(w).Encode(map[string]any{"id": i.ID, "tags": i.Tags}); err != nil {
				return // the client is gone
			}
		}
	}
}

func serveExport(a archives) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Trailer", "Berth-Error")
		first := &lazy{w: w}
		err := a.Export(req.Context(), first, req.URL.Query()["ref"])
		switch {
		case err != nil && !first.begun:
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		case err != nil:
			w.Header().Set("Berth-Error", err.Error())
		}
	}
}

// lazy knows whether an answer has begun.
type lazy struct {
	w     io.Writer
	begun bool
}

// Write implements io.Writer.
func (l *lazy) Write(b []byte) (int, error) {
	l.begun = true
	return l.w.Write(b)
}
