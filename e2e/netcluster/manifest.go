package netcluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Apply posts every document of a manifest; what is there already stays.
func (c *Cluster) Apply(ctx context.Context, file string) error {
	b, err := os.ReadFile(file) //nolint:gosec // the test's own
	if err != nil {
		return err
	}
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(b), 4096)
	for {
		var u unstructured.Unstructured
		err := d.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil && u.Object != nil {
			err = c.Post(ctx, &u)
		}
		if err != nil {
			return fmt.Errorf("%s: %s %s: %w", file, u.GetKind(), u.GetName(), err)
		}
	}
}

// Post creates one object, whatever its kind: its resource is its kind in small letters with an s.
func (c *Cluster) Post(ctx context.Context, u *unstructured.Unstructured) error {
	body, err := u.MarshalJSON()
	if err != nil {
		return err
	}
	err = c.Client.Discovery().RESTClient().Post().AbsPath("/apis", u.GetAPIVersion(), resource(u)).Body(body).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Remove deletes one object.
func (c *Cluster) Remove(ctx context.Context, u *unstructured.Unstructured) error {
	return c.Client.Discovery().RESTClient().Delete().AbsPath("/apis", u.GetAPIVersion(), resource(u), u.GetName()).Do(ctx).Error()
}

func resource(u *unstructured.Unstructured) string { return strings.ToLower(u.GetKind()) + "s" }

// List reads all objects of a resource into out.
func (c *Cluster) List(ctx context.Context, apiVersion, resource string, out any) error {
	b, err := c.Client.Discovery().RESTClient().Get().AbsPath("/apis", apiVersion, resource).Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}
