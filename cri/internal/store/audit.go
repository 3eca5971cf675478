package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth/cri/internal/audit"
	"github.com/berth-project/berth/internal/atomicfile"
)

// Audit looks at every record below dir and returns those that are good, by kind and id. It changes nothing. Records that
// are in quarantine already are named.
func Audit(dir string) (good map[string]map[string][]byte, all []audit.Finding, err error) {
	good = map[string]map[string][]byte{}
	kinds, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range kinds {
		if !k.IsDir() {
			continue
		}
		if k.Name() == quarantine {
			more, err := quarantined(filepath.Join(dir, quarantine))
			if err != nil {
				return nil, nil, err
			}
			all = append(all, more...)
			continue
		}
		good[k.Name()] = map[string][]byte{}
		files, err := os.ReadDir(filepath.Join(dir, k.Name()))
		if err != nil {
			return nil, nil, err
		}
		for _, f := range files {
			path := filepath.Join(dir, k.Name(), f.Name())
			if strings.HasPrefix(f.Name(), ".tmp-") {
				all = append(all, audit.Finding{Object: k.Name() + " record", What: "half of a write that was interrupted", Action: audit.Remove, Path: path})
				continue
			}
			data, err := atomicfile.ReadSealed(path)
			if err != nil {
				all = append(all, Damaged(dir, k.Name(), f.Name(), err))
				continue
			}
			good[k.Name()][f.Name()] = data
		}
	}
	return good, all, nil
}

// Damaged is the finding of a record that cannot be read.
func Damaged(dir, kind, id string, cause error) audit.Finding {
	return audit.Finding{
		Object: kind + " " + id, What: "record cannot be read: " + cause.Error(), Harm: true,
		Action: audit.Quarantine, Path: filepath.Join(dir, kind, id), Into: filepath.Join(dir, quarantine, kind),
	}
}

// quarantined names what was put aside before.
func quarantined(dir string) (all []audit.Finding, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, rerr := filepath.Rel(dir, p)
			all = append(all, audit.Finding{Object: rel, What: "in quarantine since an earlier start: evidence, to be deleted when it was looked at"})
			err = rerr
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return slices.Clip(all), err
}
