// Command plugin is a CNI plugin that writes down how it was called, in the file its configuration names, and does
// what its configuration says: {"log": FILE, "fail": ["ADD", …], "touch": FILE, "noIP": true}.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

type conf struct {
	CNIVersion string   `json:"cniVersion"`
	Name       string   `json:"name"`
	Log        string   `json:"log"`
	Fail       []string `json:"fail"`
	Wait       string   `json:"wait"` // ADD waits until this file exists
	NoIP       bool     `json:"noIP"`
}

func main() {
	verb := os.Getenv("CNI_COMMAND")
	if verb == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}`)
		return
	}
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		os.Exit(3)
	}
	var c conf
	if err := json.Unmarshal(raw, &c); err != nil {
		os.Exit(4)
	}
	line, err := json.Marshal(map[string]any{
		"verb": verb, "id": os.Getenv("CNI_CONTAINERID"), "netns": os.Getenv("CNI_NETNS"), "ifname": os.Getenv("CNI_IFNAME"),
		"args": os.Getenv("CNI_ARGS"), "path": os.Getenv("CNI_PATH"), "config": json.RawMessage(raw),
	})
	if err != nil {
		os.Exit(5)
	}
	f, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		os.Exit(6)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		os.Exit(7)
	}
	for verb == "ADD" && c.Wait != "" {
		if _, err := os.Stat(c.Wait); err == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if slices.Contains(c.Fail, verb) {
		fmt.Printf(`{"cniVersion":%q,"code":50,"msg":"%s of %s fails","details":"as it was told to"}`+"\n", c.CNIVersion, verb, c.Name)
		os.Exit(1)
	}
	if verb != "ADD" {
		return
	}
	ips := `[{"address":"10.9.0.2/24","interface":1},{"address":"fd00:9::2/64","interface":1},{"address":"10.9.0.1/24","interface":0}]`
	if c.NoIP {
		ips = "[]"
	}
	fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"host0"},{"name":"eth0","sandbox":%q}],"ips":%s}`+"\n", c.CNIVersion, os.Getenv("CNI_NETNS"), ips)
}
