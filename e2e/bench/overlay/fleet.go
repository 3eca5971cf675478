package overlay

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-project/berth/e2e/netcluster"
)

// fleetNode is the object of a node that is not there, as large as real ones: flannel's annotations, and as many images
// in its status as a kubelet reports.
func fleetNode(i int) *corev1.Node {
	ip := fmt.Sprintf("10.99.%d.%d", i>>8, i&255)
	n := netcluster.Object(fmt.Sprintf("fleet-%04d", i), ip, fmt.Sprintf("10.%d.%d.0/24", 244+i>>8, i&255))
	n.Annotations = map[string]string{
		"flannel.alpha.coreos.com/backend-data":        fmt.Sprintf(`{"VNI":1,"VtepMAC":%q}`, mac()),
		"flannel.alpha.coreos.com/backend-type":        "vxlan",
		"flannel.alpha.coreos.com/kube-subnet-manager": "true",
		"flannel.alpha.coreos.com/public-ip":           ip,
	}
	for j := range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{
			Names: []string{
				fmt.Sprintf("registry.example.org/team-%d/service-%d@sha256:%064x", i%7, j, i*1000+j), fmt.Sprintf("registry.example.org/team-%d/service-%d:v1.%d", i%7, j, i),
			}, SizeBytes: int64(j) << 20,
		})
	}
	return n
}
