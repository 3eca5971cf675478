package image

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/berth-project/berth/cri/internal/audit"
	"github.com/berth-project/berth/cri/internal/layers"
	"github.com/berth-project/berth/cri/internal/registry"
	"github.com/berth-project/berth/internal/atomicfile"
)

// Audit looks at every image record, config and layer below root, and counts what is in every layer; content that has
// changed and kept its size is not seen. used are the images of containers: their records are left alone, since the daemon
// would take their layers for unused. It changes nothing.
func Audit(root string, used map[string]bool) ([]audit.Finding, error) {
	good, all, err := layers.Audit(root)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(filepath.Join(root, recordsDir))
	if err != nil {
		return nil, err
	}
	quarantine := filepath.Join(root, quarantineDir)
	needed := map[string]bool{}
	for _, f := range files {
		path := filepath.Join(root, recordsDir, f.Name())
		if !strings.HasSuffix(f.Name(), recordSuffix) {
			all = append(all, audit.Finding{Object: "image record", What: "half of a write that was interrupted", Action: audit.Remove, Path: path})
			continue
		}
		rec, err := readRecord(path)
		if err != nil {
			all = append(all, audit.Finding{Object: "image " + f.Name(), What: "record cannot be read, it must be pulled again: " + err.Error(), Harm: true, Action: audit.Quarantine, Path: path, Into: quarantine})
			continue
		}
		for _, id := range rec.ids() {
			needed[id] = true
		}
		config, lost := configDamage(root, rec.ID)
		if config != nil {
			all = append(all, *config)
		}
		for _, id := range rec.ids() {
			if !good[id] {
				lost = append(lost, "layer "+id)
			}
		}
		if len(lost) == 0 {
			continue
		}
		finding := audit.Finding{Object: "image " + rec.ID, What: "must be pulled again, it lacks " + strings.Join(lost, ", "), Harm: true, Action: audit.Quarantine, Path: path, Into: quarantine}
		if used[rec.ID] {
			finding.Action, finding.What = audit.None, finding.What+"; containers use it: remove them first"
		}
		all = append(all, finding)
	}
	for id := range good {
		if !needed[id] {
			all = append(all, audit.Finding{Object: "layer " + id, What: "no image has it: the daemon's next start removes it, unless a container still uses it"})
		}
	}
	return all, nil
}

func readRecord(path string) (*record, error) {
	b, err := atomicfile.ReadSealed(path)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Version != 1 || strings.TrimPrefix(r.ID, "sha256:")+recordSuffix != filepath.Base(path) {
		return nil, fmt.Errorf("it is version %d of image %s", r.Version, r.ID)
	}
	for _, l := range r.Layers {
		for _, d := range []digest.Digest{l.DiffID, l.Chain} {
			if err := registry.CheckDigest(d); err != nil {
				return nil, err
			}
		}
	}
	return &r, nil
}

// configDamage says whether a config is what its digest says; one that is not is to be put aside.
func configDamage(root, id string) (*audit.Finding, []string) {
	path := filepath.Join(root, configsDir, strings.TrimPrefix(id, "sha256:"))
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, []string{"its config: " + err.Error()}
	}
	if digest.FromBytes(b).String() == id {
		return nil, nil
	}
	return &audit.Finding{Object: "config of image " + id, What: "is not what its digest says", Harm: true, Action: audit.Quarantine, Path: path, Into: filepath.Join(root, quarantineDir)}, []string{"its config"}
}
