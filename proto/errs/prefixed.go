package errs

// Prefixed is an error whose text starts with a word the kubelet matches (ImageVolumeMountFailed,
// RegistryUnavailable, …). It reaches a gRPC client as code Unknown, because the kubelet looks for the prefix only
// after that (kubelet/images, kuberuntime).
type Prefixed struct {
	Prefix string
	Err    error
}

// Error implements error.
func (p *Prefixed) Error() string { return p.Prefix + ": " + p.Err.Error() }

// Unwrap gives the cause.
func (p *Prefixed) Unwrap() error { return p.Err }
