// Adds two vectors on a GPU through the driver API alone: the kernel is PTX, which the driver compiles.
//
//	vectoradd [SECONDS]   add until the time is over, at least once; "vectorAdd: ok on NAME, N times"
//	vectoradd fault       store to an address that is nobody's: XID 31, an application's fault
//
// libcuda is opened at run time by the name that every CUDA program uses.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *ptx =
	".version 7.0\n.target sm_70\n.address_size 64\n"
	".visible .entry sum_of_two(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u32 pn)\n{\n"
	".reg .pred %p<2>;\n.reg .b32 %r<6>;\n.reg .f32 %f<4>;\n.reg .b64 %rd<8>;\n"
	"ld.param.u64 %rd1, [pa];\nld.param.u64 %rd2, [pb];\nld.param.u64 %rd3, [pc];\nld.param.u32 %r1, [pn];\n"
	"mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmov.u32 %r4, %tid.x;\nmad.lo.s32 %r5, %r2, %r3, %r4;\n"
	"setp.ge.s32 %p1, %r5, %r1;\n@%p1 bra DONE;\n"
	"mul.wide.s32 %rd4, %r5, 4;\nadd.s64 %rd5, %rd1, %rd4;\nadd.s64 %rd6, %rd2, %rd4;\nadd.s64 %rd7, %rd3, %rd4;\n"
	"ld.global.f32 %f1, [%rd5];\nld.global.f32 %f2, [%rd6];\nadd.f32 %f3, %f1, %f2;\nst.global.f32 [%rd7], %f3;\n"
	"DONE:\nret;\n}\n";

typedef unsigned long long ptr;

static void *lib;

static void *sym(const char *name) {
	void *f = dlsym(lib, name);
	if (!f) { fprintf(stderr, "vectorAdd: %s\n", dlerror()); exit(3); }
	return f;
}

static void check(const char *what, int code) {
	if (code) { fprintf(stderr, "vectorAdd: %s: CUDA error %d\n", what, code); exit(4); }
}

int main(int argc, char **argv) {
	enum { n = 1 << 20 };
	int fault = argc > 1 && !strcmp(argv[1], "fault"), device, count, times = 0;
	double seconds = argc > 1 && !fault ? atof(argv[1]) : 0;
	lib = dlopen("libcuda.so.1", RTLD_NOW);
	if (!lib) { fprintf(stderr, "vectorAdd: %s\n", dlerror()); return 2; }
	int (*init)(unsigned) = sym("cuInit"), (*get_count)(int *) = sym("cuDeviceGetCount"), (*get)(int *, int) = sym("cuDeviceGet");
	int (*get_name)(char *, int, int) = sym("cuDeviceGetName"), (*create)(void **, unsigned, int) = sym("cuCtxCreate_v2");
	int (*alloc)(ptr *, size_t) = sym("cuMemAlloc_v2"), (*to)(ptr, const void *, size_t) = sym("cuMemcpyHtoD_v2");
	int (*from)(void *, ptr, size_t) = sym("cuMemcpyDtoH_v2"), (*load)(void **, const void *) = sym("cuModuleLoadData");
	int (*function)(void **, void *, const char *) = sym("cuModuleGetFunction"), (*sync)(void) = sym("cuCtxSynchronize");
	int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **) = sym("cuLaunchKernel");
	char name[128];
	void *context, *module, *add;
	ptr a, b, c;
	check("cuInit", init(0));
	check("cuDeviceGetCount", get_count(&count));
	check("cuDeviceGet", get(&device, 0));
	check("cuDeviceGetName", get_name(name, sizeof name, device));
	check("cuCtxCreate", create(&context, 0, device));
	check("cuModuleLoadData", load(&module, ptx));
	check("cuModuleGetFunction", function(&add, module, "sum_of_two"));
	float *x = malloc(n * sizeof *x), *y = malloc(n * sizeof *y);
	for (int i = 0; i < n; i++) { x[i] = i; y[i] = 2 * i; }
	check("cuMemAlloc", alloc(&a, n * sizeof *x) || alloc(&b, n * sizeof *x) || alloc(&c, n * sizeof *x));
	check("cuMemcpyHtoD", to(a, x, n * sizeof *x) || to(b, y, n * sizeof *y));
	if (fault) c = 0x10;
	int size = n;
	void *args[] = { &a, &b, &c, &size };
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		check("cuLaunchKernel", launch(add, (n + 255) / 256, 1, 1, 256, 1, 1, 0, NULL, args, NULL));
		check("cuCtxSynchronize", sync());
		times++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec + (now.tv_nsec - start.tv_nsec) / 1e9 < seconds);
	check("cuMemcpyDtoH", from(x, c, n * sizeof *x));
	for (int i = 0; i < n; i++)
		if (x[i] != 3.0f * i) { fprintf(stderr, "vectorAdd: element %d is %f\n", i, x[i]); return 5; }
	printf("vectorAdd: ok on %s of %d, %d times\n", name, count, times);
	return 0;
}
