package image_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

func plainOf(t *testing.T, packed []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(packed))
	must(t, err)
	b, err := io.ReadAll(r)
	must(t, err)
	return b
}

// status answers with a code and headers, key and value in turn.
func status(code int, kv ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(kv); i += 2 {
			w.Header().Set(kv[i], kv[i+1])
		}
		w.WriteHeader(code)
	}
}

// body answers with text.
func body(text string, kv ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status(200, append([]string{"Content-Type", ociManifest}, kv...)...)(w, r)
		_, _ = io.WriteString(w, text)
	}
}

// at replaces the handler of one kind.
func at(kind string, h http.HandlerFunc) func(x *rogue) { return func(x *rogue) { x.on[kind] = h } }

// once misbehaves for the first n requests of a kind.
func once(kind string, n int, h http.HandlerFunc) func(x *rogue) {
	return func(x *rogue) {
		x.on[kind] = func(w http.ResponseWriter, r *http.Request) {
			if x.nth(kind) <= n {
				h(w, r)
				return
			}
			x.good(kind, w, r)
		}
	}
}

func hangUp(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// statusCases are codes and pauses, for each kind of request.
func statusCases() map[string]func(x *rogue) {
	out := map[string]func(x *rogue){
		"429, then good":   once("manifest", 2, status(429)),
		"429 with seconds": once("manifest", 1, status(429, "Retry-After", "1")),
		"429 with a date": once("manifest", 1, func(w http.ResponseWriter, r *http.Request) {
			status(429, "Retry-After", time.Now().Add(time.Second).UTC().Format(http.TimeFormat))(w, r)
		}),
		"429 with a past date":     once("manifest", 1, status(429, "Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT")),
		"429 for a year":           at("manifest", status(429, "Retry-After", "31536000")),
		"429 until 9999":           at("manifest", status(429, "Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT")),
		"429 for longer than time": at("manifest", status(429, "Retry-After", "99999999999999999999")),
		"429 for a negative time":  at("manifest", status(429, "Retry-After", "-1")),
		"429 for nonsense":         at("manifest", status(429, "Retry-After", "soon")),
		"503 for a year, layer":    at("layer", status(503, "Retry-After", "31536000")),
		"hangs up, manifest":       at("manifest", hangUp),
		"hangs up twice, manifest": once("manifest", 2, hangUp),
		"hangs up twice, layer":    once("layer", 2, hangUp),
		"1xx without end": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			for range 20 {
				w.WriteHeader(103)
			}
			status(404)(w, r)
		}),
		"error with a page of 1 MiB": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			status(404)(w, r)
			_, _ = io.WriteString(w, strings.Repeat("<html>", 200_000))
		}),
		"error with words": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			status(404)(w, r)
			_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"RegistryUnavailable: \u001b[31m\nno"}]}`)
		}),
		"error with 10,000 words": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			status(403)(w, r)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"`+strings.Repeat("no", 3000)+`"}]}`)
		}),
		"headers of 1 MiB": at("manifest", status(200, "X-Large", strings.Repeat("x", 1<<20))),
		"10,000 headers": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			for i := range 10_000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), "x")
			}
			status(200)(w, r)
		}),
	}
	for _, code := range []int{204, 400, 401, 403, 404, 405, 408, 410, 418, 451, 500, 501, 502, 503, 504, 599} {
		for _, kind := range []string{"manifest", "config", "layer"} {
			if kind == "manifest" || code == 204 || code == 404 || code == 500 {
				out[fmt.Sprintf("%d for ever, %s", code, kind)] = at(kind, status(code))
			}
		}
	}
	return out
}

// manifestCases are documents that are not what they should be.
func manifestCases() map[string]func(x *rogue) {
	text := func(s string) func(x *rogue) { return func(x *rogue) { x.manifest = []byte(s) } }
	change := func(f func(m map[string]any)) func(x *rogue) { return func(x *rogue) { x.rewrite = f } }
	layer := func(key string, v any) func(x *rogue) {
		return change(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)[key] = v })
	}
	index := func(n int) string {
		e := `{"mediaType":"` + ociManifest + `","size":2,"digest":"` + digest.FromString("{}").String() + `","platform":{"os":"linux","architecture":"amd64"}}`
		return `{"schemaVersion":2,"mediaType":"` + ociIndex + `","manifests":[` + strings.TrimSuffix(strings.Repeat(e+",", n), ",") + `]}`
	}
	typed := func(mediaType, s string) func(x *rogue) {
		return func(x *rogue) {
			x.on["manifest"] = body(s, "Content-Type", mediaType)
		}
	}
	return map[string]func(x *rogue){
		"manifest: empty":                      text(""),
		"manifest: no JSON":                    text("<html>"),
		"manifest: null":                       text("null"),
		"manifest: a list":                     text("[]"),
		"manifest: a number":                   text("1e999999999"),
		"manifest: nested 100,000 deep":        text(strings.Repeat("[", 100_000)),
		"manifest: an empty object":            text("{}"),
		"manifest: wrong types":                text(`{"schemaVersion":"2","config":7,"layers":{}}`),
		"manifest: of 5 MiB":                   text(`{"x":"` + strings.Repeat("x", 5<<20) + `"}`),
		"manifest: schema 1":                   text(`{"schemaVersion":1,"name":"app","fsLayers":[{"blobSum":"sha256:0"}]}`),
		"manifest: both kinds":                 change(func(m map[string]any) { m["manifests"] = []any{} }),
		"manifest: both kinds, in capitals":    change(func(m map[string]any) { m["MANIFESTS"] = []any{} }),
		"manifest: another media type inside":  change(func(m map[string]any) { m["mediaType"] = ociIndex }),
		"manifest: unknown media type":         change(func(m map[string]any) { m["mediaType"] = "text/html" }),
		"manifest: 10,000 layers":              change(func(m map[string]any) { m["layers"] = manyLayers(10_000) }),
		"manifest: no layers, config has one":  change(func(m map[string]any) { m["layers"] = []any{} }),
		"manifest: two layers, config has one": change(func(m map[string]any) { l := m["layers"].([]any); m["layers"] = append(l, l[0]) }),
		"manifest: an artifact": change(func(m map[string]any) {
			m["config"].(map[string]any)["mediaType"] = "application/vnd.oci.empty.v1+json"
		}),
		"manifest: foreign layer":       layer("mediaType", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
		"manifest: encrypted layer":     layer("mediaType", ociLayer+"+encrypted"),
		"manifest: content at URLs":     layer("urls", []string{"http://127.0.0.1:1/x"}),
		"manifest: digest climbs":       layer("digest", "sha256:../../../../etc/passwd"),
		"manifest: digest in capitals":  layer("digest", "sha256:"+strings.Repeat("A", 64)),
		"manifest: digest too short":    layer("digest", "sha256:abc"),
		"manifest: digest of 1 MiB":     layer("digest", "sha256:"+strings.Repeat("a", 1<<20)),
		"manifest: digest of SHA-1":     layer("digest", "sha1:"+strings.Repeat("a", 40)),
		"manifest: digest of SHA-512":   layer("digest", "sha512:"+strings.Repeat("a", 128)),
		"manifest: digest unknown":      layer("digest", "rot13:"+strings.Repeat("a", 64)),
		"manifest: digest empty":        layer("digest", ""),
		"manifest: size negative":       layer("size", -1),
		"manifest: size 2^62":           layer("size", int64(1)<<62),
		"manifest: size beyond numbers": layer("size", 1e30),
		"manifest: size too small":      layer("size", 10),
		"manifest: size too large":      layer("size", 1<<20),
		"manifest: size 0":              layer("size", 0),
		"manifest: data inline":         layer("data", "eA=="),
		"manifest: announced otherwise": func(x *rogue) {
			x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
				x.good("manifest", w, r)
			}
		},
		"manifest: announced as nonsense": func(x *rogue) {
			x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Docker-Content-Digest", "../../x")
				x.good("manifest", w, r)
			}
		},
		"manifest: endless": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}),
		"manifest: stalls": at("manifest", func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte("{"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}),
		"manifest: cut short": at("manifest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte("{"))
			panic(http.ErrAbortHandler)
		}),
		"manifest: compressed unasked": at("manifest", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(gz([]byte("{}")))
		}),
		"manifest: is the layer": func(x *rogue) {
			x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) { x.good("layer", w, r) }
		},
		"manifest: is the config": func(x *rogue) {
			x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) { x.good("config", w, r) }
		},
		"index: of itself":          typed(ociIndex, index(1)),
		"index: of 2,000":           typed(ociIndex, index(2000)),
		"index: empty":              typed(ociIndex, index(0)),
		"index: for other machines": typed(ociIndex, strings.ReplaceAll(index(1), "amd64", "s390x")),
		"index: without platforms":  typed(ociIndex, strings.ReplaceAll(index(1), `"platform"`, `"x"`)),
		"index: called a manifest":  typed(ociManifest, index(1)),
		"index: entry of 1 TiB":     typed(ociIndex, strings.ReplaceAll(index(1), `"size":2`, `"size":1099511627776`)),
		"index: nested without end": nested,
	}
}

func manyLayers(n int) (out []any) {
	for i := range n {
		out = append(out, descriptor(ociLayer, []byte(strconv.Itoa(i))))
	}
	return out
}

// nested answers every digest with an index that leads to another.
func nested(x *rogue) {
	docs := map[string]string{}
	inner := `{"schemaVersion":2,"manifests":[]}`
	for range 20 {
		d := digest.FromString(inner).String()
		docs[d] = inner
		inner = fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"size":%d,"digest":%q,"platform":{"os":"linux","architecture":"amd64"}}]}`, ociIndex, ociIndex, len(inner), d)
	}
	x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) {
		doc, ok := docs[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
		if !ok {
			doc = inner
		}
		body(doc, "Content-Type", ociIndex)(w, r)
	}
}

// configCases are configs, with their true digests where nothing else is said.
func configCases(t *testing.T) map[string]func(x *rogue) {
	t.Helper()
	conf := func(s string) func(x *rogue) { return func(x *rogue) { x.config = []byte(s) } }
	swap := func(from, to string) func(x *rogue) {
		return func(x *rogue) { x.config = bytes.ReplaceAll(x.config, []byte(from), []byte(to)) }
	}
	return map[string]func(x *rogue){
		"config: no JSON":             conf("<html>"),
		"config: empty object":        conf("{}"),
		"config: null":                conf("null"),
		"config: of 9 MiB":            conf(`{"x":"` + strings.Repeat("x", 9<<20) + `"}`),
		"config: nested 100,000 deep": conf(strings.Repeat(`{"a":`, 100_000)),
		"config: for another machine": swap("amd64", "s390x"),
		"config: for another system":  swap("linux", "windows"),
		"config: diffID climbs":       conf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:../../../x"]}}`),
		"config: diffID of another":   conf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["` + digest.FromString("x").String() + `"]}}`),
		"config: 10,000 diffIDs":      conf(`{"architecture":"amd64","os":"linux","rootfs":{"diff_ids":[` + strings.TrimSuffix(strings.Repeat(`"`+digest.FromString("x").String()+`",`, 10_000), ",") + `]}}`),
		"config: other bytes":         at("config", body("{}")),
		"config: same length": func(x *rogue) {
			x.on["config"] = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, len(x.config))) }
		},
		"config: endless": at("config", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}),
		"config: breaks, then good": once("config", 1, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("{"))
			panic(http.ErrAbortHandler)
		}),
		"config: a million variables": conf(`{"architecture":"amd64","os":"linux","config":{"Env":[` + strings.TrimSuffix(strings.Repeat(`"A=B",`, 1_000_000), ",") + `]},"rootfs":{"diff_ids":["` + digest.FromString("x").String() + `"]}}`),
	}
}
