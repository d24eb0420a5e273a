/* _dl_find_object of glibc 2.35, which gcc's unwinder calls, for musl: the loaded object that contains an
   address, and its unwinding table. */
#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>

struct dl_find_object {
    unsigned long long flags;
    void *start, *end;
    struct link_map *map;
    void *eh_frame;
    unsigned long long reserved[7];
};

struct search {
    ElfW(Addr) address;
    struct dl_find_object *result;
};

static int visit(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    ElfW(Addr) start = 0, end = 0;
    void *eh_frame = NULL;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        ElfW(Addr) at = info->dlpi_addr + header->p_vaddr;
        if (header->p_type == PT_GNU_EH_FRAME) {
            eh_frame = (void *)at;
        } else if (header->p_type == PT_LOAD && search->address - at < header->p_memsz) {
            start = at;
            end = at + header->p_memsz;
        }
    }
    if (end == 0 || eh_frame == NULL) return 0;
    *search->result = (struct dl_find_object){.start = (void *)start, .end = (void *)end, .eh_frame = eh_frame};
    return 1;
}

int _dl_find_object(void *address, struct dl_find_object *result) {
    struct search search = {(ElfW(Addr))address, result};
    return dl_iterate_phdr(visit, &search) ? 0 : -1;
}
