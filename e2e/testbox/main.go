// Command testbox is the part of the test images that busybox lacks: it acts by the name of its own file.
//
//	nginx, httpd   a web server on port 80 (-p PORT for another) that writes /var/run/NAME.pid, as the servers
//	               it stands in for; its process title holds "master process"
//	ipcs, pgrep    the few lines of util-linux and procps that the conformance suite reads
//	nnp            prints its effective uid (set-user-id in its image)
//	pause          waits; reaps as pid 1
//	memhog         touches as many MiB as its argument says, then sleeps
//	probe          prints what a container sees of itself, for comparing runtimes
package main

import (
	"bufio"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		fatal(err)
	}
	switch name := filepath.Base(self); name {
	case "nginx", "httpd":
		err = serve(name)
	case "ipcs":
		err = ipcs()
	case "pgrep":
		err = pgrep(os.Args[len(os.Args)-1])
	case "nnp":
		_, err = fmt.Println("Effective uid:", os.Geteuid())
	case "pause":
		pause()
	case "memhog":
		err = memhog(os.Args[1:])
	case "probe":
		err = probe()
	default:
		err = fmt.Errorf("no part of mine is called %q", name)
	}
	if err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serve re-executes itself once, for the title, and serves one page.
func serve(name string) error {
	const titled = "BERTH_TITLED"
	if os.Getenv(titled) == "" {
		argv := append([]string{name + ": master process " + os.Args[0]}, os.Args[1:]...)
		return syscall.Exec("/proc/self/exe", argv, append(os.Environ(), titled+"=1"))
	}
	port := "80"
	for i, a := range os.Args {
		if a == "-p" && i+1 < len(os.Args) {
			port = os.Args[i+1]
		}
	}
	if err := os.MkdirAll("/var/run", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("/var/run/"+name+".pid", []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err) // a read-only rootfs serves all the same
	}
	go func() { // SIGTERM and SIGQUIT end it, also as pid 1
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT)
		<-c
		os.Exit(0)
	}()
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	page := fmt.Sprintf("<!DOCTYPE html><title>Welcome to nginx!</title><h1>Welcome to nginx!</h1><p>%s serves this page from pod %s.</p>\n", name, host)
	log.SetOutput(os.Stdout)
	log.Printf("%s/berth-testbox configured -- resuming normal operations on port %s", name, port)
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.Printf("%s %s from %s", r.Method, r.URL.Path, r.RemoteAddr)
		fmt.Fprint(w, page)
	}))
}

// ipcs prints /proc/sysvipc/shm the way `ipcs -m` does.
func ipcs() error {
	f, err := os.Open("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	fmt.Println("\n------ Shared Memory Segments --------\nkey        shmid      owner      perms      bytes      nattch     status")
	sc := bufio.NewScanner(f)
	for first := true; sc.Scan(); first = false {
		c := strings.Fields(sc.Text())
		if first || len(c) < 8 {
			continue
		}
		key, err := strconv.ParseInt(c[0], 10, 64)
		if err != nil {
			return err
		}
		fmt.Printf("0x%08x %-10s %-10s %-10s %-10s %-10s\n", uint32(key), c[1], c[7], c[2], c[3], c[6])
	}
	return sc.Err()
}

// pgrep lists the processes of exactly that name.
func pgrep(name string) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	found := false
	for _, d := range dirs {
		comm, err := os.ReadFile(d + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == name {
			fmt.Println(filepath.Base(d))
			found = true
		}
	}
	if !found {
		os.Exit(1)
	}
	return nil
}

func pause() {
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range c {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
	}
}

func memhog(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: memhog MIB")
	}
	mib, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	b := make([]byte, mib<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("touched", mib, "MiB")
	time.Sleep(time.Hour)
	return nil
}
