# What a container may do for which the pod asks for no AppArmor profile, or for RuntimeDefault. It stands behind
# capabilities, seccomp and masked paths, for containers that were given more of those than they should have.
# Rules that deny outweigh all that allow (apparmor.d(5)).
profile berth-default flags=(attach_disconnected, mediate_deleted) {
  capability,
  network,
  unix,
  file,
  umount,

  # the node's processes, and its own kind
  signal (receive) peer=unconfined,
  signal (send, receive) peer=berth-default,
  ptrace (trace, tracedby, read, readby) peer=berth-default,

  deny mount,

  # kernel memory and switches
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwkl,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** wkl,
  # sysctls but those of the container's own namespaces: net, and of kernel shm*, msg*, sem; of fs mqueue
  deny /proc/sys/{abi,debug,dev,user,vm}/** wkl,
  deny /proc/sys/fs/{[^m],m[^q]}** wkl,
  deny /proc/sys/kernel/{[^ms],m[^s],s[^he]}** wkl,

  # of sysfs only control groups
  deny /sys/{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}/** wkl,
  deny /sys/fs/[^c]** wkl,
  deny /sys/{firmware,kernel/security}/** r,
}
