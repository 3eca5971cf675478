package csi

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"

	"github.com/berth-project/berth/e2e/harness"
)

// untyped is a client for objects of any kind.
func untyped() (dynamic.Interface, error) { return dynamic.NewForConfig(node.cluster.Config) }

func applyFile(ctx context.Context, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return apply(ctx, string(b))
}

// TestManifests: the API server would take every manifest of deploy/csi as it is, with no field that it does not know;
// those that the other tests apply are there already.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("../../deploy/csi/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := applyWith(t.Context(), string(b), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// apply creates the objects of a manifest, whatever kinds they are; a kind that was defined a moment ago is waited for.
func apply(ctx context.Context, text string) error {
	return applyWith(ctx, text, metav1.CreateOptions{})
}

func applyWith(ctx context.Context, text string, opts metav1.CreateOptions) error {
	c, err := untyped()
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(node.cluster.Client.Discovery()))
	docs := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		o := &unstructured.Unstructured{}
		if err := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(doc), len(doc)).Decode(&o.Object); err != nil {
			return err
		}
		if len(o.Object) == 0 { // only a comment
			continue
		}
		if err := create(ctx, c, mapper, o, opts); err != nil && (len(opts.DryRun) == 0 || !apierrors.IsAlreadyExists(err)) {
			return err
		}
	}
}

func create(ctx context.Context, c dynamic.Interface, mapper meta.ResettableRESTMapper, o *unstructured.Unstructured, opts metav1.CreateOptions) error {
	kind := o.GroupVersionKind()
	var m *meta.RESTMapping
	err := harness.Until(ctx, 50*time.Millisecond, nil, func() (err error) {
		if m, err = mapper.RESTMapping(kind.GroupKind(), kind.Version); err != nil {
			mapper.Reset()
		}
		return err
	})
	if err != nil {
		return err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		_, err = c.Resource(m.Resource).Namespace(o.GetNamespace()).Create(ctx, o, opts)
	} else {
		_, err = c.Resource(m.Resource).Create(ctx, o, opts)
	}
	return err
}

// snapshotAPI is one kind of the snapshot API.
func snapshotAPI(name string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: name}
}
