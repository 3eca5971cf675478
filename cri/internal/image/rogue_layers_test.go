package image_test

import (
	"archive/tar"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cut sends the first k bytes of the layer, whatever was asked for, and hangs up.
func (x *rogue) cut(k int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(x.layer)))
		_, _ = w.Write(x.layer[:k])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// layerCases are downloads that go wrong, and layers that are not what was promised.
func layerCases(t *testing.T) map[string]func(x *rogue) {
	t.Helper()
	// first misbehaves once, then does what f says.
	first := func(then func(x *rogue, w http.ResponseWriter, r *http.Request)) func(x *rogue) {
		return func(x *rogue) {
			x.on["layer"] = func(w http.ResponseWriter, r *http.Request) {
				if x.nth("layer") == 1 {
					x.cut(300)(w, r)
				}
				then(x, w, r)
			}
		}
	}
	always := func(f func(x *rogue, w http.ResponseWriter, r *http.Request)) func(x *rogue) {
		return func(x *rogue) { x.on["layer"] = func(w http.ResponseWriter, r *http.Request) { f(x, w, r) } }
	}
	packed := func(b []byte) func(x *rogue) {
		return func(x *rogue) { x.layer = b }
	}
	trickle := func(x *rogue, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(x.layer)))
		for i := 0; r.Context().Err() == nil && i < len(x.layer); i++ {
			_, _ = w.Write(x.layer[i : i+1])
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return map[string]func(x *rogue){
		"layer: breaks, resumed":       first(func(x *rogue, w http.ResponseWriter, r *http.Request) { x.good("layer", w, r) }),
		"layer: breaks, range ignored": first(func(x *rogue, w http.ResponseWriter, r *http.Request) { r.Header.Del("Range"); x.good("layer", w, r) }),
		"layer: breaks, 416":           first(func(x *rogue, w http.ResponseWriter, r *http.Request) { refuseRange(x, w, r) }),
		"layer: breaks, another range": first(func(_ *rogue, w http.ResponseWriter, _ *http.Request) {
			status(206, "Content-Range", "bytes 7-9/10")(w, nil)
		}),
		"layer: breaks, range of nonsense": first(func(_ *rogue, w http.ResponseWriter, _ *http.Request) {
			status(206, "Content-Range", "lines 1")(w, nil)
		}),
		"layer: breaks, range without header": first(func(_ *rogue, w http.ResponseWriter, _ *http.Request) { status(206)(w, nil) }),
		"layer: breaks, then other content":   first(func(x *rogue, w http.ResponseWriter, r *http.Request) { sendOther(x, w, r) }),
		"layer: breaks, then 404":             first(func(_ *rogue, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }),
		"layer: breaks for ever":              always(func(x *rogue, w http.ResponseWriter, r *http.Request) { x.cut(10)(w, r) }),
		"layer: breaks at 0 for ever":         always(func(x *rogue, w http.ResponseWriter, r *http.Request) { x.cut(0)(w, r) }),
		"layer: stalls for ever": always(func(x *rogue, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(x.layer)))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}),
		"layer: a byte at a time": always(trickle),
		"layer: 206 unasked": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(x.layer)-1, len(x.layer)))
			w.WriteHeader(206)
			_, _ = w.Write(x.layer)
		}),
		"layer: 206 from the midst": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 9-%d/%d", len(x.layer)-1, len(x.layer)))
			w.WriteHeader(206)
			_, _ = w.Write(x.layer[9:])
		}),
		"layer: too short": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(x.layer[:100]) }),
		"layer: too long": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(x.layer)
			_, _ = io.WriteString(w, "more")
		}),
		"layer: endless": always(func(_ *rogue, w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}),
		"layer: empty":                    always(func(_ *rogue, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }),
		"layer: other bytes, same length": always(sendOther),
		"layer: one bit": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			b := append([]byte{}, x.layer...)
			b[len(b)-1] ^= 1
			_, _ = w.Write(b)
		}),
		"layer: encoded once more": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(gz(x.layer))
		}),
		"layer: with trailers": always(func(x *rogue, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X")
			w.(http.Flusher).Flush()
			_, _ = w.Write(x.layer)
			w.Header().Set("X", strings.Repeat("t", 1000))
		}),
		"layer: a login page": always(func(_ *rogue, w http.ResponseWriter, r *http.Request) {
			body("<html>Sign in</html>", "Content-Type", "text/html")(w, r)
		}),
		"layer: truncated archive": func(x *rogue) { x.layer = x.layer[:len(x.layer)/2] },
		"layer: no archive":        packed([]byte(strings.Repeat("<html>", 1000))),
		"layer: a bomb": func(x *rogue) {
			b := tarOf(t, file("bomb", strings.Repeat("\x00", 64<<20)))
			x.layer, x.config, x.limit = gz(b), configFor(b), 1<<20
		},
		"layer: a file over the limit": func(x *rogue) { x.limit = 1000 },
		"layer: hostile": func(x *rogue) {
			b := tarOf(t, member{Header: tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "/", Mode: 0o644}})
			x.layer, x.config = gz(b), configFor(b)
		},
		"layer: climbs": func(x *rogue) {
			b := tarOf(t, file("../../../etc/passwd", "x"))
			x.layer, x.config = gz(b), configFor(b)
		},
	}
}

func refuseRange(x *rogue, w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Range") != "" {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	x.good("layer", w, r)
}

// sendOther sends as many bytes as were asked for, but others.
func sendOther(x *rogue, w http.ResponseWriter, r *http.Request) {
	from := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(x.layer)-1, len(x.layer)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(make([]byte, len(x.layer)-from))
}

// redirectCases send layers and manifests elsewhere. The caller has a credential and the registry wants it.
func redirectCases() map[string]func(x *rogue) {
	to := func(kind string, where func(x *rogue) string) func(x *rogue) {
		return func(x *rogue) {
			x.auth = true
			x.on[kind] = x.login(func(w http.ResponseWriter, r *http.Request) {
				status(http.StatusTemporaryRedirect, "Location", where(x)+r.URL.Path)(w, r)
			})
		}
	}
	fixed := func(s string) func(x *rogue) {
		return func(x *rogue) {
			x.auth = true
			x.on["layer"] = x.login(status(http.StatusFound, "Location", s))
		}
	}
	other := func(x *rogue) string { return x.bystander.URL }
	back := func(x *rogue) { // other host, which sends it back
		to("layer", other)(x)
		x.on["bystander"] = func(w http.ResponseWriter, r *http.Request) {
			status(http.StatusFound, "Location", x.URL+"/again"+r.URL.Path)(w, r)
		}
	}
	return map[string]func(x *rogue){
		"redirect: to another host": to("layer", other),
		"redirect: the manifest":    to("manifest", other),
		"redirect: the config":      to("config", other),
		"redirect: and back":        back,
		"redirect: to one that wants a login": func(x *rogue) {
			to("layer", other)(x)
			x.on["bystander"] = status(401, "WWW-Authenticate", "Basic realm=x")
		},
		"redirect: to one that wants a token": func(x *rogue) {
			to("layer", other)(x)
			x.on["bystander"] = status(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/token"`)
		},
		"redirect: to one that fails": func(x *rogue) { to("layer", other)(x); x.on["bystander"] = status(500) },
		"redirect: to one with other bytes": func(x *rogue) {
			to("layer", other)(x)
			x.on["bystander"] = func(w http.ResponseWriter, r *http.Request) { sendOther(x, w, r) }
		},
		"redirect: loop": to("layer", func(x *rogue) string { return x.URL }),
		"redirect: loop of two": func(x *rogue) {
			to("layer", other)(x)
			x.on["bystander"] = func(w http.ResponseWriter, r *http.Request) {
				status(302, "Location", x.bystander.URL+r.URL.Path+"x")(w, r)
			}
		},
		"redirect: with a user in it": to("layer", func(x *rogue) string { return strings.Replace(x.bystander.URL, "://", "://root:pw@", 1) }),
		"redirect: to a file":         fixed("file:///etc/passwd"),
		"redirect: to ftp":            fixed("ftp://127.0.0.1/x"),
		"redirect: to a socket":       fixed("unix:///run/berth/cri.sock"),
		"redirect: to nowhere":        fixed(""),
		"redirect: to nonsense":       fixed("http://[::1"),
		"redirect: to a closed port":  fixed("http://127.0.0.1:1/x"),
		"redirect: 300":               func(x *rogue) { x.on["layer"] = status(300, "Location", x.bystander.URL) },
		"redirect: 304":               func(x *rogue) { x.on["layer"] = status(304) },
	}
}

// login lets only those with the credential through.
func (x *rogue) login(then http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, pass, _ := r.BasicAuth(); pass != canary {
			status(401, "WWW-Authenticate", `Basic realm="x"`)(w, r)
			return
		}
		then(w, r)
	}
}

// loginCases ask for credentials in ways that they should not.
func loginCases() map[string]func(x *rogue) {
	ask := func(challenge func(x *rogue) string) func(x *rogue) {
		return func(x *rogue) {
			x.auth = true
			x.on["manifest"] = func(w http.ResponseWriter, r *http.Request) { status(401, "WWW-Authenticate", challenge(x))(w, r) }
		}
	}
	realm := func(url string) func(x *rogue) string {
		return func(x *rogue) string {
			return fmt.Sprintf(`Bearer realm="%s",service="s",scope="repository:other:push"`, strings.ReplaceAll(url, "HERE", x.URL))
		}
	}
	token := func(answer http.HandlerFunc) func(x *rogue) {
		return func(x *rogue) { ask(realm("HERE/token"))(x); x.on["token"] = answer }
	}
	return map[string]func(x *rogue){
		"login: no challenge":            ask(func(*rogue) string { return "" }),
		"login: basic for ever":          ask(func(*rogue) string { return "Basic realm=x" }),
		"login: without a credential":    func(x *rogue) { ask(func(*rogue) string { return "Basic realm=x" })(x); x.auth = false },
		"login: unknown scheme":          ask(func(*rogue) string { return "Negotiate" }),
		"login: unterminated":            ask(func(*rogue) string { return `Bearer realm="http://` }),
		"login: challenge of 60 KB":      ask(func(*rogue) string { return "Bearer " + strings.Repeat("a=b,", 15_000) }),
		"login: no realm":                ask(func(*rogue) string { return `Bearer service="x"` }),
		"login: realm is a file":         ask(realm("file:///etc/passwd")),
		"login: realm is no URL":         ask(realm("nonsense")),
		"login: realm with a user":       ask(realm("http://a:b@127.0.0.1:1/token")),
		"login: realm is closed":         ask(realm("http://127.0.0.1:1/token")),
		"login: token for ever":          token(body(`{"token":"t"}`)),
		"login: token empty":             token(body(`{"token":""}`)),
		"login: token with a line break": token(body(`{"token":"a\r\nX-Evil: 1"}`)),
		"login: token no JSON":           token(body(`<html>`)),
		"login: token of 2 MiB":          token(body(`{"token":"` + strings.Repeat("t", 2<<20) + `"}`)),
		"login: token of 500 KB":         token(body(`{"token":"` + strings.Repeat("t", 500<<10) + `"}`)),
		"login: token endless": token(func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}),
		"login: token endpoint 500": token(status(500)),
		"login: token endpoint 401": token(status(401, "WWW-Authenticate", "Basic realm=y")),
		"login: token endpoint leads on": func(x *rogue) {
			token(nil)(x)
			x.on["token"] = func(w http.ResponseWriter, r *http.Request) { status(307, "Location", x.bystander.URL+"/token")(w, r) }
		},
		"login: token stalls": token(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "{")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}),
		"login: only for the layer": func(x *rogue) {
			x.auth = true
			x.on["layer"] = x.login(func(w http.ResponseWriter, r *http.Request) { x.good("layer", w, r) })
		},
		"login: good token, layer denied": func(x *rogue) { x.auth = true; x.on["layer"] = status(403) },
	}
}

// mirrorCases put the bystander before the registry, as a mirror. The credential is the registry's.
func mirrorCases() map[string]func(x *rogue) {
	mirror := func(h http.HandlerFunc) func(x *rogue) {
		return func(x *rogue) {
			x.auth, x.most, x.on["bystander"] = true, 24, h
			x.hosts = func(x *rogue) string { return fmt.Sprintf("server = %q\n[host.%q]\n", x.URL, x.bystander.URL) }
		}
	}
	part := func(kind string, h http.HandlerFunc) func(x *rogue) {
		return func(x *rogue) {
			mirror(func(w http.ResponseWriter, r *http.Request) {
				if x.kind(r.URL.Path) == kind {
					h(w, r)
					return
				}
				x.good(x.kind(r.URL.Path), w, r)
			})(x)
		}
	}
	return map[string]func(x *rogue){
		"mirror: 404":            mirror(http.NotFound),
		"mirror: 500":            mirror(status(500)),
		"mirror: 429 for a year": mirror(status(429, "Retry-After", "31536000")),
		"mirror: hangs up":       mirror(hangUp),
		"mirror: wants a login":  mirror(status(401, "WWW-Authenticate", "Basic realm=x")),
		"mirror: wants a token": func(x *rogue) {
			mirror(nil)(x)
			x.on["bystander"] = func(w http.ResponseWriter, r *http.Request) {
				status(401, "WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", x.bystander.URL+"/token"))(w, r)
			}
		},
		"mirror: nonsense manifest": part("manifest", body("nonsense")),
		"mirror: no layer":          part("layer", http.NotFound),
		"mirror: layer breaks":      func(x *rogue) { part("layer", func(w http.ResponseWriter, r *http.Request) { x.cut(100)(w, r) })(x) },
		"mirror: other layer":       func(x *rogue) { part("layer", func(w http.ResponseWriter, r *http.Request) { sendOther(x, w, r) })(x) },
		"mirror: other config":      part("config", body("{}")),
		"mirror: layer stalls":      part("layer", func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); <-r.Context().Done() }),
		"mirror: leads to a file":   part("layer", status(302, "Location", "file:///etc/passwd")),
		"mirror: both fail":         func(x *rogue) { mirror(status(500))(x); x.on["manifest"] = status(404) },
		"mirror: both have bad bytes": func(x *rogue) {
			part("layer", func(w http.ResponseWriter, r *http.Request) { sendOther(x, w, r) })(x)
			x.on["layer"] = func(w http.ResponseWriter, r *http.Request) { sendOther(x, w, r) }
		},
		"mirror: closed": func(x *rogue) {
			x.hosts = func(x *rogue) string { return fmt.Sprintf("server = %q\n[host.\"http://127.0.0.1:1\"]\n", x.URL) }
		},
		"mirror: hosts file is broken": func(x *rogue) { x.hosts = func(*rogue) string { return "[host" } },
	}
}
