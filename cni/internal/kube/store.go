package kube

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// store keeps of each object what read makes of it: the reflector's store. An object that is wrong keeps what it was when
// it was last right, and has a remark. Changes of what is read, not of the objects, are told by a value in changed: a
// node's status is written every few minutes, and 5,000 nodes say nothing new with it.
type store[T any] struct {
	kind    string
	read    func(obj any) (T, error)
	changed chan<- struct{}

	mu     sync.Mutex
	good   map[string]T
	bad    map[string]string
	listed bool // the first list has come
}

func newStore[T any](kind string, changed chan<- struct{}, read func(any) (T, error)) *store[T] {
	return &store[T]{kind: kind, read: read, changed: changed, good: map[string]T{}, bad: map[string]string{}}
}

// key is the name, with the namespace where there is one.
func key(m metav1.Object) string {
	if ns := m.GetNamespace(); ns != "" {
		return ns + "/" + m.GetName()
	}
	return m.GetName()
}

func (s *store[T]) tell() {
	select {
	case s.changed <- struct{}{}:
	default: // one is waiting
	}
}

// put is with the lock held. It says whether something is not as it was.
func (s *store[T]) put(obj any) (news bool, err error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return false, err
	}
	name := key(m)
	was, wrong := s.bad[name]
	v, err := s.read(obj)
	if err != nil {
		s.bad[name] = fmt.Sprintf("%s %s: %v", s.kind, name, err)
		return s.bad[name] != was, nil
	}
	before, there := s.good[name]
	delete(s.bad, name)
	s.good[name] = v
	return wrong || !there || !reflect.DeepEqual(before, v), nil
}

// Add implements cache.ReflectorStore.
func (s *store[T]) Add(obj any) error { return s.Update(obj) }

// Update implements cache.ReflectorStore.
func (s *store[T]) Update(obj any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	news, err := s.put(obj)
	if news {
		s.tell()
	}
	return err
}

// Delete implements cache.ReflectorStore.
func (s *store[T]) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drop(func(name string) bool { return name == key(m) }) {
		s.tell()
	}
	return nil
}

// Replace implements cache.ReflectorStore: a list has come.
func (s *store[T]) Replace(list []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	there, changed := map[string]bool{}, !s.listed
	for _, obj := range list {
		m, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		there[key(m)] = true
		news, err := s.put(obj)
		if err != nil {
			return err
		}
		changed = changed || news
	}
	changed = s.drop(func(name string) bool { return !there[name] }) || changed
	s.listed = true
	if changed {
		s.tell()
	}
	return nil
}

// drop forgets objects, and says whether there were any. It is with the lock held.
func (s *store[T]) drop(gone func(name string) bool) bool {
	before := len(s.good) + len(s.bad)
	maps.DeleteFunc(s.good, func(name string, _ T) bool { return gone(name) })
	maps.DeleteFunc(s.bad, func(name string, _ string) bool { return gone(name) })
	return len(s.good)+len(s.bad) != before
}

// Resync implements cache.ReflectorStore; there is nothing to do again.
func (s *store[T]) Resync() error { return nil }

// all are the objects in the order of their names, and the remarks; ok is false before the first list.
func (s *store[T]) all() (out []T, remarks []string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.good)) {
		out = append(out, s.good[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.bad)) {
		remarks = append(remarks, s.bad[name])
	}
	return out, remarks, s.listed
}

func (s *store[T]) wasListed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listed
}
