package layers

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth/cri/internal/audit"
	"github.com/berth-project/berth/internal/atomicfile"
)

// Audit looks at every committed layer below root: its record, and how many inodes and bytes it has, as Verify does. It returns
// those that are good, and changes nothing.
func Audit(root string) (good map[string]bool, all []audit.Finding, err error) {
	good = map[string]bool{}
	dirs, err := os.ReadDir(filepath.Join(root, layersDir))
	if err != nil {
		return nil, nil, err
	}
	for _, d := range dirs {
		path := filepath.Join(root, layersDir, d.Name())
		if err := auditLayer(path, d.Name()); err != nil {
			all = append(all, audit.Finding{
				Object: "layer " + d.Name(), What: err.Error(), Harm: true, Action: audit.Quarantine, Path: path, Into: filepath.Join(root, quarantineDir),
			})
			continue
		}
		good[d.Name()] = true
	}
	for dir, what := range map[string]string{tmpDir: "of a process that is gone", trashDir: "was thrown away and not deleted"} {
		ents, rerr := os.ReadDir(filepath.Join(root, dir))
		err = errors.Join(err, rerr)
		for _, e := range ents {
			all = append(all, audit.Finding{Object: dir, What: what, Action: audit.Remove, Path: filepath.Join(root, dir, e.Name())})
		}
	}
	ents, qerr := os.ReadDir(filepath.Join(root, quarantineDir))
	for _, e := range ents {
		name, _, _ := strings.Cut(e.Name(), ".")
		all = append(all, audit.Finding{Object: name, What: "in quarantine since an earlier start: evidence, to be deleted when it was looked at"})
	}
	if errors.Is(qerr, os.ErrNotExist) {
		qerr = nil
	}
	return good, all, errors.Join(err, qerr)
}

func auditLayer(dir, id string) error {
	b, err := atomicfile.ReadSealed(filepath.Join(dir, recordName))
	if err != nil {
		return fmt.Errorf("record cannot be read: %w", err)
	}
	var info Info
	if err := json.Unmarshal(b, &info); err != nil {
		return fmt.Errorf("record cannot be read: %w", err)
	}
	if info.ID != id || info.Version != 1 {
		return fmt.Errorf("record is of layer %s, version %d", info.ID, info.Version)
	}
	if info.Result, err = info.Unquote(); err != nil {
		return fmt.Errorf("record cannot be read: %w", err)
	}
	inodes, bytes, err := census(filepath.Join(dir, contentName))
	if err != nil {
		return fmt.Errorf("content cannot be read: %w", err)
	}
	if inodes != info.Inodes || bytes != info.Bytes {
		return fmt.Errorf("content has %d of %d inodes and %d of %d bytes", inodes, info.Inodes, bytes, info.Bytes)
	}
	return nil
}
