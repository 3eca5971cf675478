package v1

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestMessages(t *testing.T) {
	var b bytes.Buffer
	want := Request{Version: Version, Env: []string{"CNI_COMMAND=ADD"}, Stdin: []byte("{}\x00")}
	if err := Write(&b, want); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	var got Request
	if err := Read(&b, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := Read(&b, &got); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for i := 1; i < len(whole); i++ {
		if err := Read(bytes.NewReader(whole[:i]), &got); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	if err := Read(bytes.NewReader(binary.BigEndian.AppendUint32(nil, MaxMessage+1)), &got); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a long one: %v", err)
	}
	if err := Write(&b, Request{Stdin: make([]byte, MaxMessage)}); err == nil {
		t.Error("a long one was sent")
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var r Request
		_ = Read(bytes.NewReader(b), &r) // must not panic, nor take memory for what is not there
	})
}
