package volgroup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth/proto/errs"
)

// Volume is a logical volume.
type Volume struct {
	Name, UUID   string
	Size         int64 // bytes, whole extents
	Tags         []string
	Pool         string   // of a thin volume: its thin pool
	Layout       []string // "linear", "thin", "thin" and "pool" …
	Data         float64  // of a thin pool, or an active thin volume: share of its size that is used, 0 to 1
	Metadata     float64  // of a thin pool: likewise
	Zeroing      bool     // of a thin pool: new blocks are zero
	ErrorsIfFull bool     // of a thin pool: a full one fails writes, it does not let them wait
	Extents      []string // where it is, as Extend takes it
}

// Report is a group with all its visible volumes, of one moment.
type Report struct {
	UUID               string
	Size, Free, Extent int64 // bytes
	Writable, Whole    bool  // Whole: no disk is missing
	Volumes            []Volume
}

// Volume finds one by name.
func (r Report) Volume(name string) (Volume, bool) {
	for _, v := range r.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return Volume{}, false
}

// RoundUp rounds bytes up to whole extents.
func (r Report) RoundUp(n int64) int64 { return (n + r.Extent - 1) / r.Extent * r.Extent }

const (
	groupFields  = "vg_uuid,vg_size,vg_free,vg_extent_size,vg_permissions,vg_missing_pv_count"
	volumeFields = "lv_name,lv_uuid,lv_size,lv_tags,lv_layout,pool_lv,data_percent,metadata_percent,lv_when_full"
	partFields   = "lv_uuid,zero,seg_pe_ranges"
)

// Report asks LVM. A group that is not there is Unavailable.
func (g *Group) Report(ctx context.Context) (Report, error) {
	out, err := g.runIn(ctx, g.reading, "fullreport", "--reportformat", "json", "--units", "b", "--nosuffix", "--configreport", "vg", "--options", groupFields,
		"--configreport", "lv", "--options", volumeFields, "--configreport", "seg", "--options", partFields,
		"--configreport", "pv", "--options", "pv_uuid", "--configreport", "pvseg", "--options", "pv_uuid", g.name)
	if err != nil {
		return Report{}, err
	}
	r, err := parse(out)
	if err != nil {
		return Report{}, fmt.Errorf("volume group %s: lvm's report: %w", g.name, err)
	}
	if r.UUID == "" {
		return Report{}, errs.Unavailable.Errorf("volume group %s is not there: attach its disks", g.name)
	}
	return r, nil
}

// parse reads the JSON of "fullreport" of one group: every value is a string.
func parse(b []byte) (r Report, err error) {
	var all struct {
		Report []struct {
			VG, LV, Seg []map[string]string
		}
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return r, err
	}
	if len(all.Report) == 0 || len(all.Report[0].VG) == 0 {
		return r, nil
	}
	one := all.Report[0]
	f := fields{one.VG[0], &err}
	r.UUID, r.Size, r.Free, r.Extent = f.text("vg_uuid"), f.bytes("vg_size"), f.bytes("vg_free"), f.bytes("vg_extent_size")
	r.Writable, r.Whole = f.text("vg_permissions") == "writeable", f.text("vg_missing_pv_count") == "0"
	if r.Extent <= 0 {
		return r, errors.Join(err, errors.New("no size of its extents"))
	}
	for _, m := range one.LV {
		f := fields{m, &err}
		v := Volume{
			Name: f.text("lv_name"), UUID: f.text("lv_uuid"), Size: f.bytes("lv_size"), Tags: f.list("lv_tags"), Layout: f.list("lv_layout"),
			Pool: f.text("pool_lv"), Data: f.percent("data_percent"), Metadata: f.percent("metadata_percent"), ErrorsIfFull: f.text("lv_when_full") == "error",
		}
		for _, s := range one.Seg {
			if s["lv_uuid"] == v.UUID {
				v.Zeroing = s["zero"] == "zero"
				v.Extents = append(v.Extents, strings.Fields(s["seg_pe_ranges"])...)
			}
		}
		r.Volumes = append(r.Volumes, v)
	}
	slices.SortFunc(r.Volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return r, err
}

// fields reads one row; the first value that is not what it should be is the error.
type fields struct {
	row map[string]string
	err *error
}

func (f fields) text(key string) string { return f.row[key] }

func (f fields) list(key string) []string {
	return strings.FieldsFunc(f.row[key], func(r rune) bool { return r == ',' })
}

func (f fields) bytes(key string) int64 {
	n, err := strconv.ParseInt(f.row[key], 10, 64)
	if err != nil && *f.err == nil {
		*f.err = fmt.Errorf("%s: %w", key, err)
	}
	return n
}

// percent is absent of what has none, or is not active.
func (f fields) percent(key string) float64 {
	if f.row[key] == "" {
		return 0
	}
	n, err := strconv.ParseFloat(f.row[key], 64)
	if err != nil && *f.err == nil {
		*f.err = fmt.Errorf("%s: %w", key, err)
	}
	return n / 100
}

// ignoreMissing is for a device that shall not be there.
func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
