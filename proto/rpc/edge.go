package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/berth-project/berth/proto/errs"
)

// MaxMessage is the size of a message both ways, the kubelet's own limit (k8s.io/cri-client).
const MaxMessage = 16 << 20

// Observer is told of every finished call, for metrics.
type Observer func(method string, code codes.Code, took time.Duration)

// Edge wraps calls. Make it with NewEdge.
type Edge struct {
	log     *slog.Logger
	observe Observer
	// deadline is for calls whose client set none; 0 in the map means no deadline (watches, pulls).
	deadline time.Duration
	endless  map[string]bool
	next     atomic.Uint64
}

// NewEdge returns an edge that logs to log. Calls that come without a deadline get the given one, but for the
// methods (full names, "/pkg.Service/Method") in endless. observe may be nil.
func NewEdge(log *slog.Logger, deadline time.Duration, endless []string, observe Observer) *Edge {
	e := &Edge{log: log, observe: observe, deadline: deadline, endless: map[string]bool{}}
	for _, m := range endless {
		e.endless[m] = true
	}
	return e
}

// Options are the server options that put the edge around every call.
func (e *Edge) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.UnaryInterceptor(e.unary), grpc.StreamInterceptor(e.stream),
		grpc.NumStreamWorkers(0),
	}
}

type requestKey struct{}

// RequestID is the id of the call that ctx belongs to, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

func (e *Edge) begin(ctx context.Context, method string) (context.Context, context.CancelFunc) {
	ctx = context.WithValue(ctx, requestKey{}, strconv.FormatUint(e.next.Add(1), 36))
	if _, ok := ctx.Deadline(); !ok && !e.endless[method] && e.deadline > 0 {
		return context.WithTimeout(ctx, e.deadline)
	}
	return context.WithCancel(ctx)
}

func (e *Edge) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	ctx, cancel := e.begin(ctx, info.FullMethod)
	defer cancel()
	start := time.Now()
	defer func() {
		if r := recover(); r != nil {
			err = errs.Internal.Errorf("panic: %v", r)
			e.log.Error("panic", "method", info.FullMethod, "panic", r, "stack", string(debug.Stack()))
		}
		err = e.finish(ctx, info.FullMethod, start, err)
		if err != nil {
			resp = nil
		}
	}()
	return next(ctx, req)
}

type contextStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc's own way to replace a stream's context
}

// Context implements grpc.ServerStream.
func (s contextStream) Context() context.Context { return s.ctx }

func (e *Edge) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	ctx, cancel := e.begin(ss.Context(), info.FullMethod)
	defer cancel()
	start := time.Now()
	defer func() {
		if r := recover(); r != nil {
			err = errs.Internal.Errorf("panic: %v", r)
			e.log.Error("panic", "method", info.FullMethod, "panic", r, "stack", string(debug.Stack()))
		}
		err = e.finish(ctx, info.FullMethod, start, err)
	}()
	return next(srv, contextStream{ss, ctx})
}

// finish maps the error, tells the observer and writes the one line: failures at warn level with their text,
// the rest at debug.
func (e *Edge) finish(ctx context.Context, method string, start time.Time, err error) error {
	took := time.Since(start)
	err = ToStatus(err)
	code := status.Code(err)
	if e.observe != nil {
		e.observe(method, code, took)
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("request", RequestID(ctx)),
		slog.String("code", code.String()), slog.Duration("took", took),
	}
	level := slog.LevelDebug
	if err != nil && !quiet(code) {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	e.log.LogAttrs(ctx, level, "call", attrs...)
	return err
}

// quiet codes are answers, not failures: the kubelet asks for objects it knows may be gone.
func quiet(c codes.Code) bool {
	return c == codes.NotFound || c == codes.Canceled || c == codes.Unimplemented
}

var codeOf = map[errs.Class]codes.Code{ // read only
	errs.Internal:           codes.Internal,
	errs.InvalidArgument:    codes.InvalidArgument,
	errs.NotFound:           codes.NotFound,
	errs.AlreadyExists:      codes.AlreadyExists,
	errs.FailedPrecondition: codes.FailedPrecondition,
	errs.PermissionDenied:   codes.PermissionDenied,
	errs.Unauthenticated:    codes.Unauthenticated,
	errs.ResourceExhausted:  codes.ResourceExhausted,
	errs.OutOfRange:         codes.OutOfRange,
	errs.Aborted:            codes.Aborted,
	errs.Unavailable:        codes.Unavailable,
	errs.DeadlineExceeded:   codes.DeadlineExceeded,
	errs.Canceled:           codes.Canceled,
	errs.Unimplemented:      codes.Unimplemented,
}

// ToStatus maps an error of ours to a gRPC status error; one that already is a status stays as it is, and one with
// a prefix for the kubelet becomes Unknown with the prefix in front.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	var p *errs.Prefixed
	if errors.As(err, &p) {
		return status.Error(codes.Unknown, p.Error())
	}
	if _, ok := status.FromError(err); ok && errs.Of(err) == errs.Internal {
		return err
	}
	code, ok := codeOf[errs.Of(err)]
	if !ok {
		code = codes.Internal
	}
	return status.Error(code, err.Error())
}

// FromStatus is the way back, for our own clients: the class of the code, the text unchanged.
func FromStatus(err error) error {
	s, ok := status.FromError(err)
	if !ok || err == nil {
		return err
	}
	for class, code := range codeOf {
		if code == s.Code() {
			return class.Errorf("%s", s.Message())
		}
	}
	return fmt.Errorf("%s: %s", s.Code(), s.Message())
}
