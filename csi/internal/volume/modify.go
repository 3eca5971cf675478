package volume

import (
	"context"
	"errors"
	"maps"

	"github.com/berth-project/berth/internal/failpoint"
)

var (
	modifyAfterIntent = failpoint.New("csi.modify.after_intent")
	modifyAfterTune   = failpoint.New("csi.modify.after_tune")
)

// Modify changes the settings that are named and leaves the others; one that the volume cannot have is InvalidArgument,
// and then nothing is changed.
func (m *Manager) Modify(ctx context.Context, id string, settings map[string]string) error {
	end, err := m.begin(id, "ControllerModifyVolume")
	if err != nil {
		return err
	}
	defer end()
	v, p, err := m.volume(id)
	if err != nil {
		return err
	}
	old := v
	v.Mutable = maps.Clone(v.Mutable)
	if v.Mutable == nil {
		v.Mutable = map[string]string{}
	}
	maps.Copy(v.Mutable, settings)
	if err := p.Backend.CheckTuning(v.spec()); err != nil || maps.Equal(v.Mutable, old.Mutable) && !v.Tuning {
		return err
	}
	// 1. The intent: a kill from here on is gone on with.
	v.Tuning = true
	if err := errors.Join(m.keep(v, true), modifyAfterIntent.Hit()); err != nil {
		return err
	}
	// 2. The storage, and what is attached.
	if err := errors.Join(p.Backend.Tune(ctx, m.spec(v)), modifyAfterTune.Hit()); err != nil {
		undo, cancel := cleanup(ctx)
		defer cancel()
		return errors.Join(err, m.keep(old, true), p.Backend.Tune(undo, m.spec(old)))
	}
	v.Tuning = false
	return m.keep(v, true)
}
