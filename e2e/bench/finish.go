package bench

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth/e2e/bench/report"
)

// finish writes and prints what was found.
func (b *run) finish() error {
	json := filepath.Join(b.Out, "cri.json")
	err := b.report.WriteJSON(json)
	subtitle := fmt.Sprintf("one run on one machine, interleaved, p50 of %d; same images, seccomp, limits; logarithmic", b.Samples)
	err = errors.Join(err, b.report.WriteSVG(b.Picture, "A pod's life through the CRI", subtitle, panels()))
	fmt.Printf("\n[%4.0f s] done; %d samples were taken on a busy machine (PSI over %g %%)\n\n", time.Since(b.begin).Seconds(), b.noisy, b.Noise)
	b.report.Print(os.Stdout)
	fmt.Println("\nRows named floor_… have the kernel alone as the peer. The bars:")
	bars := report.Bars()
	for _, condition := range []string{"userns", "crowded"} {
		if b.asks(condition) {
			bars = append(bars, report.BarsUnder(condition+"_")...)
		}
	}
	missed := b.report.PrintBars(os.Stdout, bars)
	fmt.Printf("\n%d of %d bars hold; the figures are in %s and %s\n", len(bars)-missed, len(bars), json, b.Picture)
	return err
}

func panels() []report.Panel {
	ms := func(label, row string) report.Line {
		return report.Line{Label: label, Row: row + "_p50", Floor: "floor_" + row + "_p50", Scale: 1, Unit: "ms"}
	}
	return []report.Panel{
		{Title: "milliseconds, fewer is better", Rows: []report.Line{
			ms("RunPodSandbox", "run_pod_sandbox"), ms("Create + Start", "create_start"), ms("ExecSync", "exec_sync"),
			ms("StopContainer", "stop_container"), ms("StopPodSandbox", "stop_pod_sandbox"), ms("RemovePodSandbox", "remove_pod_sandbox"),
			ms("pull 128 MiB, 8 layers", "pull_128MiB"), ms("pull 11,500 files", "pull_11500_files"),
		}},
		{Title: "pods per second, more is better", Rows: []report.Line{
			{Label: "30 at once", Row: "burst_30_pods_per_s", Floor: "floor_burst_30_pods_per_s", Scale: 1, Unit: "/s"},
			{Label: "100 at once", Row: "burst_100_pods_per_s", Floor: "floor_burst_100_pods_per_s", Scale: 1, Unit: "/s"},
		}},
		{Title: "MiB of memory (PSS) at 100 pods, fewer is better", Rows: []report.Line{
			{Label: "per pod", Row: "pss_per_pod", Scale: 1.0 / 1024, Unit: "MiB"},
			{Label: "daemon", Row: "daemon_pss", Scale: 1, Unit: "MiB"},
		}},
	}
}
