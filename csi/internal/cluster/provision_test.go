package cluster

import (
	"testing"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"

	"github.com/berth-project/berth/proto/errs"
)

// TestStates: which failures give a claim back to the scheduler. One whose source is elsewhere would stay on this node for
// ever if it did not.
func TestStates(t *testing.T) {
	for class, want := range map[errs.Class][2]controller.ProvisioningState{
		errs.ResourceExhausted: {controller.ProvisioningReschedule, controller.ProvisioningReschedule},
		errs.Unavailable:       {controller.ProvisioningFinished, controller.ProvisioningInBackground},
		errs.Aborted:           {controller.ProvisioningFinished, controller.ProvisioningInBackground},
		errs.InvalidArgument:   {controller.ProvisioningFinished, controller.ProvisioningFinished},
	} {
		err := class.Errorf("no")
		if got := [2]controller.ProvisioningState{refused(err), state(err)}; got != want {
			t.Errorf("%s: before and after it is asked for: %v, want %v", class, got, want)
		}
	}
}
