package registry

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-project/berth/proto/errs"
)

var hex = strings.Repeat("0123456789abcdef", 4)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"busybox":                             "docker.io/library/busybox:latest",
		"busybox:1":                           "docker.io/library/busybox:1",
		"docker.io/busybox":                   "docker.io/library/busybox:latest",
		"index.docker.io/library/busybox":     "docker.io/library/busybox:latest",
		"u/app":                               "docker.io/u/app:latest",
		"localhost/app":                       "localhost/app:latest",
		"localhost:5000/app:v1":               "localhost:5000/app:v1",
		"r.example/a/b@sha256:" + hex:         "r.example/a/b@sha256:" + hex,
		"r.example/a/b:tag@sha256:" + hex:     "r.example/a/b@sha256:" + hex,
		"[::1]:5000/app":                      "[::1]:5000/app:latest",
		"Busybox":                             "",
		"":                                    "",
		hex:                                   "",
		"a@sha256:123":                        "",
		"a@sha512:" + hex + hex:               "",
		"a b":                                 "",
		"r.example/../etc":                    "",
		"r.example/a:tag\n":                   "",
		"r.example/a@sha256:" + hex + "/../x": "",
		strings.Repeat("a", 5000):             "",
	} {
		r, err := Parse(in)
		if got := r.String(); want != "" && (err != nil || got != want) {
			t.Errorf("Parse(%.60q) = %q, %v, want %q", in, got, err, want)
		}
		if want == "" && err == nil {
			t.Errorf("Parse(%.60q) = %q, want an error", in, r)
		}
	}
}

func TestParseHosts(t *testing.T) {
	hosts, unknown, err := parseHosts([]byte(`
server = "https://up.example/prefix"
ca = "up.crt"
colour = "blue"

[host."https://second.example"]
  capabilities = ["pull", "resolve", "push"]
  skip_verify = true
  dial_timeout = "3s"
  [host."https://second.example".header]
    x-one = "1"
    x-two = ["a", "b"]

[host."http://first.example:5000/v2/mirror"]
  capabilities = ["pull"]
  override_path = true
  client = [["c.cert", "c.key"], ["/abs/both.pem", ""]]
  ca = ["a.crt", "/b.crt"]
  skip_verfy = true

[host."third.example/base"]
`), "/etc/d")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"colour", "host.http://first.example:5000/v2/mirror.skip_verfy"}; !reflect.DeepEqual(unknown, want) {
		t.Errorf("unknown %q", unknown)
	}
	var got []string
	for _, h := range hosts {
		got = append(got, fmt.Sprint(h, h.path, " ", h.pull, h.resolve, h.upstream, h.skipVerify, " ", h.ca, h.client, h.header, h.dialTimeout))
	}
	want := []string{
		"https://second.example/v2 truetruefalsetrue [] []map[X-One:[1] X-Two:[a b]]3s",
		"http://first.example:5000/v2/mirror truefalsefalsefalse [/etc/d/a.crt /b.crt] [[/etc/d/c.cert /etc/d/c.key] [/abs/both.pem ]]map[]0s",
		"https://third.example/base/v2 truetruefalsefalse [] []map[]0s",
		"https://up.example/prefix/v2 truetruetruefalse [/etc/d/up.crt] []map[]0s",
	}
	if !reflect.DeepEqual(normal(got), normal(want)) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, bad := range []string{
		`server = 3`, `[host."https://u:p@x"]`, `[host."https://x"]` + "\ncapabilities=[\"fly\"]", `[host."https://x"]` + "\nca=3",
		`[host."https://x"]` + "\nclient=[[\"a\",\"b\",\"c\"]]", `[host."https://x"]` + "\ndial_timeout=\"soon\"", `[host."https://"]`, `=`,
	} {
		if _, _, err := parseHosts([]byte(bad), "/"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func normal(in []string) []string {
	var out []string
	for _, s := range in {
		out = append(out, strings.ReplaceAll(s, " ", ""))
	}
	return out
}

const configDesc = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%[1]s","size":2}`

func TestParseDocument(t *testing.T) {
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:%[1]s","size":2}`
	const oci, idx = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	for name, c := range map[string]struct {
		contentType, body string
		class             errs.Class
	}{
		"image":                {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[` + layer + `]}`, ""},
		"no type anywhere":     {"", `{"schemaVersion":2,` + configDesc + `,"layers":[]}`, ""},
		"parameters":           {oci + "; charset=utf-8", `{"schemaVersion":2,"mediaType":"` + oci + `",` + configDesc + `,"layers":[]}`, ""},
		"index":                {idx, `{"schemaVersion":2,"manifests":[]}`, ""},
		"both":                 {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[],"manifests":[]}`, errs.FailedPrecondition},
		"both, as index":       {idx, `{"schemaVersion":2,"layers":[],"manifests":[]}`, errs.FailedPrecondition},
		"mismatch":             {idx, `{"schemaVersion":2,"mediaType":"` + oci + `",` + configDesc + `,"layers":[]}`, errs.FailedPrecondition},
		"index served as one":  {oci, `{"schemaVersion":2,"manifests":[]}`, errs.FailedPrecondition},
		"image served as list": {dockerList, `{"schemaVersion":2,` + configDesc + `,"layers":[]}`, errs.FailedPrecondition},
		"schema 1":             {dockerSchema1s, `{"schemaVersion":1,"fsLayers":[]}`, errs.Unimplemented},
		"schema 1, unnamed":    {"", `{"schemaVersion":1,"fsLayers":[]}`, errs.Unimplemented},
		"artifact":             {oci, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%[1]s","size":2},"layers":[]}`, errs.FailedPrecondition},
		"foreign":              {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"sha256:%[1]s","size":2,"urls":["http://evil/"]}]}`, errs.FailedPrecondition},
		"urls":                 {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[` + strings.Replace(layer, `"size"`, `"urls":["http://evil/"],"size"`, 1) + `]}`, errs.FailedPrecondition},
		"negative size":        {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[` + strings.Replace(layer, `"size":2`, `"size":-2`, 1) + `]}`, errs.FailedPrecondition},
		"huge config":          {oci, `{"schemaVersion":2,` + strings.Replace(configDesc, `"size":2`, `"size":99999999`, 1) + `,"layers":[]}`, errs.FailedPrecondition},
		"digest with a path":   {oci, `{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"sha256:../../etc/passwd","size":2},"layers":[]}`, errs.FailedPrecondition},
		"unknown algorithm":    {oci, `{"schemaVersion":2,"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"md5:%[1]s","size":2},"layers":[]}`, errs.Unimplemented},
		"not JSON":             {oci, `<html>`, errs.FailedPrecondition},
		"nothing":              {oci, `{}`, errs.FailedPrecondition},
		"10k layers":           {oci, `{"schemaVersion":2,` + configDesc + `,"layers":[` + strings.Repeat(layer+",", 10_000) + layer + `]}`, errs.FailedPrecondition},
		"huge":                 {oci, strings.Repeat(" ", MaxManifest+1), errs.FailedPrecondition},
	} {
		body := strings.ReplaceAll(c.body, "%[1]s", hex)
		if _, err := ParseDocument(c.contentType, []byte(body)); errs.Of(err) != c.class {
			t.Errorf("%s: %v of class %q, want %q", name, err, errs.Of(err), c.class)
		}
	}
}

func TestSelect(t *testing.T) {
	d := func(os, arch, variant string) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(os + arch + variant), Platform: &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}}
	}
	here := runtime.GOARCH
	for name, c := range map[string]struct {
		in   []ocispec.Descriptor
		want int // -1: none
	}{
		"ours":          {[]ocispec.Descriptor{d("linux", "s390x", ""), d("windows", here, ""), d("linux", here, "")}, 2},
		"first of two":  {[]ocispec.Descriptor{d("linux", here, ""), d("linux", here, "")}, 0},
		"attestation":   {[]ocispec.Descriptor{d("unknown", "unknown", "")}, -1},
		"no platform":   {[]ocispec.Descriptor{{}, d("linux", "s390x", "")}, 0},
		"none":          {nil, -1},
		"plain variant": {[]ocispec.Descriptor{d("linux", here, "v99"), d("linux", here, "")}, 1},
	} {
		got, err := Select(&ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: c.in})
		if c.want < 0 && errs.Of(err) != errs.NotFound || c.want >= 0 && (err != nil || got.Digest != c.in[c.want].Digest) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestChallenges(t *testing.T) {
	got := parseChallenges([]string{`Bearer realm="https://a/t?x=1,2",service=reg , scope="a:b"`, "", "Basic", `basic realm="x"`, "Bearer realm"})
	want := []challenge{
		{"bearer", map[string]string{"realm": "https://a/t?x=1,2", "service": "reg ", "scope": "a:b"}},
		{"basic", map[string]string{}},
		{"basic", map[string]string{"realm": "x"}},
		{"bearer", map[string]string{"realm": ""}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestCovers(t *testing.T) {
	up := &host{addr: "registry-1.docker.io", upstream: true}
	mirror := &host{addr: "mirror.example"}
	for server, want := range map[string][2]bool{
		"": {true, false}, "https://index.docker.io/v1/": {true, false}, "docker.io": {true, false}, "mirror.example": {false, true}, "evil.example": {false, false},
	} {
		c := &Credential{ServerAddress: server}
		if got := [2]bool{c.covers(up, "docker.io"), c.covers(mirror, "docker.io")}; got != want {
			t.Errorf("%q covers %v, want %v", server, got, want)
		}
	}
	if (*Credential)(nil).covers(up, "docker.io") {
		t.Error("nothing covers something")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("busybox")
	f.Add("r.example:5000/a/b:tag@sha256:" + hex)
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(r.String()); err != nil || again.String() != r.String() {
			t.Errorf("%q becomes %q, then %q, %v", s, r, again, err)
		}
		if strings.Contains(r.String(), "..") || strings.ContainsAny(r.String(), "\x00\n ") {
			t.Errorf("%q became %q", s, r)
		}
	})
}

func FuzzParseDocument(f *testing.F) {
	f.Add("", []byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+hex+`","size":1}]}`))
	f.Add(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,`+strings.ReplaceAll(configDesc, "%[1]s", hex)+`,"layers":[]}`))
	f.Fuzz(func(t *testing.T, contentType string, b []byte) {
		d, err := ParseDocument(contentType, b)
		if err == nil && (d.Manifest == nil) == (d.Index == nil) {
			t.Error("neither or both")
		}
		if err == nil && d.Manifest != nil && CheckDigest(d.Manifest.Config.Digest) != nil {
			t.Error("bad digest accepted")
		}
	})
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("server=\"https://a\"\n[host.\"http://b\"]\ncapabilities=[\"pull\"]\n"))
	f.Add([]byte("[host.\"http://b\".header]\na=[1]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, _, err := parseHosts(b, "/x")
		if err == nil && (len(hosts) == 0 || !hosts[len(hosts)-1].upstream) {
			t.Error("no upstream")
		}
	})
}
