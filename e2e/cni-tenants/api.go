// Package tenants tests the plugin beside others that change the same kernel: kube-proxy in both of its modes, a plugin
// behind ours that rewrites rules in the pod, a meta-plugin that attaches a pod to several networks.
package tenants

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// object is one Kubernetes object in JSON.
type object map[string]any

// api is as much of a Kubernetes API server as kube-proxy needs: lists and watches of objects that do not change.
type api struct {
	objects map[string][]object // by path
	kinds   map[string][2]string
}

// meta are an object's metadata.
func meta(name string, more object) object {
	m := object{"name": name, "namespace": "default", "uid": "uid-" + name, "resourceVersion": "1"}
	for k, v := range more {
		m[k] = v
	}
	return object{"metadata": m}
}

func (o object) with(more object) object {
	for k, v := range more {
		o[k] = v
	}
	return o
}

// newAPI serves one service with one endpoint.
func newAPI(node, nodeIP, clusterIP, endpoint string) *api {
	port := object{"name": "http", "protocol": "TCP", "port": 80}
	nodeMeta := meta(node, nil)
	delete(nodeMeta["metadata"].(object), "namespace") // nodes have none
	return &api{
		kinds: map[string][2]string{
			"/api/v1/nodes": {"v1", "Node"}, "/api/v1/services": {"v1", "Service"},
			"/apis/discovery.k8s.io/v1/endpointslices":  {"discovery.k8s.io/v1", "EndpointSlice"},
			"/apis/networking.k8s.io/v1/servicecidrs":   {"networking.k8s.io/v1", "ServiceCIDR"},
			"/apis/resource.k8s.io/v1/resourceslices":   {"resource.k8s.io/v1", "ResourceSlice"},
			"/apis/networking.k8s.io/v1/ipaddresses":    {"networking.k8s.io/v1", "IPAddress"},
			"/api/v1/namespaces/default/events":         {"v1", "Event"},
			"/apis/events.k8s.io/v1/namespaces/default": {"events.k8s.io/v1", "Event"},
		},
		objects: map[string][]object{
			"/api/v1/nodes": {nodeMeta.with(object{"status": object{"addresses": []any{object{"type": "InternalIP", "address": nodeIP}}}})},
			"/api/v1/services": {meta("web", nil).with(object{"spec": object{
				"type": "NodePort", "clusterIP": clusterIP, "clusterIPs": []any{clusterIP}, "ipFamilies": []any{"IPv4"},
				"ports": []any{object{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 80, "nodePort": 30080}},
			}})},
			"/apis/discovery.k8s.io/v1/endpointslices": {meta("web-1", object{"labels": object{"kubernetes.io/service-name": "web"}}).with(object{
				"addressType": "IPv4", "ports": []any{port},
				"endpoints": []any{object{"addresses": []any{endpoint}, "nodeName": node, "conditions": object{"ready": true, "serving": true}}},
			})},
		},
	}
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	path := strings.TrimSuffix(r.URL.Path, "/")
	kind, ok := a.kinds[path]
	if !ok {
		for list, k := range a.kinds { // a single object
			for _, o := range a.objects[list] {
				if m, _ := o["metadata"].(object); m != nil && path == list+"/"+fmt.Sprint(m["name"]) {
					_ = json.NewEncoder(w).Encode(typed(o, k))
					return
				}
			}
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`)
		return
	}
	if r.URL.Query().Get("watch") == "" {
		items := []object{}
		for _, o := range a.objects[path] {
			items = append(items, typed(o, kind))
		}
		_ = json.NewEncoder(w).Encode(object{"kind": kind[1] + "List", "apiVersion": kind[0], "metadata": object{"resourceVersion": "1"}, "items": items})
		return
	}
	a.watch(w, r, path, kind)
}

// watch sends what there is, if it is asked for that, and then nothing.
func (a *api) watch(w http.ResponseWriter, r *http.Request, path string, kind [2]string) {
	e := json.NewEncoder(w)
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, o := range a.objects[path] {
			_ = e.Encode(object{"type": "ADDED", "object": typed(o, kind)})
		}
		_ = e.Encode(object{"type": "BOOKMARK", "object": object{"kind": kind[1], "apiVersion": kind[0], "metadata": object{
			"resourceVersion": "1", "annotations": object{"k8s.io/initial-events-end": "true"},
		}}})
	}
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
	select {
	case <-r.Context().Done():
	case <-time.After(time.Minute):
	}
}

func typed(o object, kind [2]string) object {
	out := object{"apiVersion": kind[0], "kind": kind[1]}
	for k, v := range o {
		out[k] = v
	}
	return out
}

// serve listens on an address of the calling thread's namespace until stop is called.
func (a *api) serve() (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		_ = s.Serve(l) // ends with Close
		close(done)
	}()
	return l.Addr().String(), func() { _ = s.Close(); <-done }, nil
}
