package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/berth-project/berth/csi/internal/config"
	"github.com/berth-project/berth/csi/internal/volume"
)

// show asks the running driver for a table and prints it.
func show(ctx context.Context, path, what string, out io.Writer) error {
	conf, err := config.Load(path)
	if err != nil {
		return err
	}
	if conf.DebugSocket == "" {
		return fmt.Errorf("debug_socket is not set in %s: the driver cannot be asked", path)
	}
	t, err := ask(ctx, conf.DebugSocket, what)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	switch what {
	case "pools":
		showPools(w, t.Pools)
	case "volumes":
		showVolumes(w, t)
	case "orphans":
		fmt.Fprintln(w, "POOL\tKIND\tID")
		for _, o := range t.Orphans {
			fmt.Fprintf(w, "%s\t%s\t%s\n", o.Pool, o.Kind, o.ID)
		}
	}
	return w.Flush()
}

func ask(ctx context.Context, socket, what string) (t tables, err error) {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://berth/tables/"+what, nil)
	if err != nil {
		return t, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return t, fmt.Errorf("is berth-csi running? %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return t, err
	}
	if resp.StatusCode != http.StatusOK {
		return t, fmt.Errorf("berth-csi: %s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return t, json.Unmarshal(b, &t)
}

func showPools(w io.Writer, all []volume.State) {
	fmt.Fprintln(w, "POOL\tBACKEND\tPROMISED\tOF\tLEFT\tDISK FREE\tVOLUMES\tSNAPSHOTS\tPROBLEMS")
	for _, p := range all {
		var problems []string
		for _, c := range p.Problems {
			problems = append(problems, c.Reason+": "+c.Message)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", p.Name, p.Kind, human(p.Promised), human(p.Limit), human(p.Free), human(p.Physical),
			p.Volumes, p.Snapshots, strings.Join(problems, "; "))
	}
}

func showVolumes(w io.Writer, t tables) {
	fmt.Fprintln(w, "ID\tPOOL\tSIZE\tWHAT\tOF\tAGE\tWHERE")
	for _, v := range t.Volumes {
		what := v.FSType
		if v.Block {
			what = "block"
		}
		where := "-"
		if v.Staged() {
			where = strings.Join(append([]string{v.Node.Staging}, v.Targets()...), " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, v.Pool, human(v.Capacity), what, owner(v), age(v.Created), where)
	}
	for _, s := range t.Snapshots {
		fmt.Fprintf(w, "%s\t%s\t%s\tsnapshot\t%s\t%s\tof %s\n", s.ID, s.Pool, human(s.Size), s.Name, age(s.Created), s.Volume)
	}
}

func owner(v volume.Volume) string {
	if len(v.Owner) == 0 {
		return v.Name
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(v.Owner)) {
		parts = append(parts, k+"="+v.Owner[k])
	}
	return strings.Join(parts, ",")
}

func age(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func human(n int64) string {
	const units = "KMGTP"
	if n < 1024 {
		return fmt.Sprintf("%d", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 && u < len(units)-1 {
		f, u = f/1024, u+1
	}
	return fmt.Sprintf("%.1f%ci", f, units[u])
}
