# A 32-bit program without any library: says ready, waits for the file go, says ok.
        .intel_syntax noprefix
        .globl _start
        .data
ready:  .ascii "ready\n"
ok:     .ascii "ok\n"
go:     .asciz "go"
nap:    .long 0, 10000000
        .text
_start: mov eax, 4
        mov ebx, 1
        mov ecx, offset ready
        mov edx, 6
        int 0x80
again:  mov eax, 33
        mov ebx, offset go
        xor ecx, ecx
        int 0x80
        test eax, eax
        jz done
        mov eax, 162
        mov ebx, offset nap
        xor ecx, ecx
        int 0x80
        jmp again
done:   mov eax, 4
        mov ebx, 1
        mov ecx, offset ok
        mov edx, 3
        int 0x80
        mov eax, 1
        xor ebx, ebx
        int 0x80
