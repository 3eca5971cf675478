package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-project/berth/cri/internal/audit"
	"github.com/berth-project/berth/internal/atomicfile"
)

// Audited is what Audit has to look at: the two roots, and the records that could be read, by kind and id (store.Audit).
type Audited struct {
	Root, State string
	Records     map[string]map[string][]byte
	// Damaged makes the finding of a record that is sealed well and says nothing.
	Damaged func(kind, id string, cause error) audit.Finding
}

// Audit looks at what pods and containers have on disk: records that do not fit each other, specs, exit records. It changes
// nothing and returns the images that containers use.
//
// What has no record may still run, and only the daemon can end it: nothing of it is to be removed here.
func Audit(a Audited) (images map[string]bool, all []audit.Finding, err error) {
	pods, images := map[string]bool{}, map[string]bool{}
	for id, b := range a.Records[podKind] {
		p, _, err := decodePod(b)
		if err == nil && p.ID != id {
			err = errors.New("it is another pod's")
		}
		switch {
		case errors.Is(err, errNewer):
			pods[id] = true
			all = append(all, audit.Finding{Object: "pod " + id, What: err.Error(), Harm: true})
		case err != nil:
			all = append(all, a.Damaged(podKind, id, err))
		default:
			pods[id] = true
		}
	}
	known := map[string]bool{}
	for id, b := range a.Records[containerKind] {
		known[id] = true
		c, _, err := decodeContainer(b)
		if err == nil && c.ID != id {
			err = errors.New("it is another container's")
		}
		switch {
		case errors.Is(err, errNewer):
			all = append(all, audit.Finding{Object: "container " + id, What: err.Error(), Harm: true})
			continue
		case err != nil:
			all = append(all, a.Damaged(containerKind, id, err))
			continue
		}
		images[c.ImageID] = true
		for _, id := range c.volumes {
			images[id] = true
		}
		for _, ref := range imagesOf(c) {
			images[ref] = true
		}
		all = append(all, a.container(c, pods[c.PodID])...)
	}
	strangers, serr := a.strangers(known)
	exits, xerr := a.exits()
	return images, append(append(all, strangers...), exits...), errors.Join(serr, xerr)
}

// container looks at one whose record is good.
func (a Audited) container(c *Container, hasPod bool) (all []audit.Finding) {
	if !hasPod {
		return []audit.Finding{{Object: "container " + c.ID, What: "its pod is gone: the daemon's next start ends and removes it"}}
	}
	b, err := os.ReadFile(filepath.Join(a.Root, "containers", c.ID, specFile))
	if err == nil {
		err = json.Unmarshal(b, &specs.Spec{})
	}
	if err != nil {
		what := "its spec cannot be read: it takes no exec: " + err.Error()
		harm := true
		switch c.State().CRI() {
		case cri.ContainerState_CONTAINER_CREATED:
			what, harm = "its making was interrupted: the daemon's next start removes it", false
		case cri.ContainerState_CONTAINER_EXITED:
			what, harm = "its spec cannot be read, and is not needed any more", false
		}
		all = append(all, audit.Finding{Object: "container " + c.ID, What: what, Harm: harm})
	}
	return all
}

// strangers are directories of containers without a record.
func (a Audited) strangers(known map[string]bool) (all []audit.Finding, err error) {
	dirs, err := os.ReadDir(filepath.Join(a.Root, "containers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, d := range dirs {
		if !known[d.Name()] {
			all = append(all, audit.Finding{Object: "container " + d.Name(), What: "has files and no good record: the daemon's next start ends what runs of it and removes them"})
		}
	}
	trash, terr := os.ReadDir(filepath.Join(a.Root, "trash"))
	for _, d := range trash {
		all = append(all, audit.Finding{Object: "trash", What: "was thrown away and not deleted", Action: audit.Remove, Path: filepath.Join(a.Root, "trash", d.Name())})
	}
	if errors.Is(terr, os.ErrNotExist) {
		terr = nil
	}
	return all, errors.Join(err, terr)
}

// exits looks at what supervisors have written of ends.
func (a Audited) exits() (all []audit.Finding, err error) {
	dir := filepath.Join(a.State, "exits")
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		switch {
		case strings.HasPrefix(f.Name(), ".tmp-"):
			all = append(all, audit.Finding{Object: "exit record", What: "half of a write that was interrupted", Action: audit.Remove, Path: path})
		case strings.HasSuffix(f.Name(), ".output"): // a log's journal: has no seal, and is read by its supervisor
		default:
			if _, err := atomicfile.ReadSealed(path); err != nil {
				all = append(all, audit.Finding{
					Object: "exit record of container " + f.Name(), What: "cannot be read, the code will be unknown: " + err.Error(), Harm: true,
					Action: audit.Quarantine, Path: path, Into: filepath.Join(a.Root, "records", "quarantine", "exit"),
				})
			}
		}
	}
	return all, err
}
