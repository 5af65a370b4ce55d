/* SPDX-License-Identifier: BSD-3-Clause */
/* Whom a file belongs to, and who else may open it: what mode 0600 is on Linux. */
#ifndef SHMPOOL_OS_WIN32_ACCESS_H
#define SHMPOOL_OS_WIN32_ACCESS_H

#include <aclapi.h>
#include <errno.h>
#include <string.h>

#define SHMPOOL_OS_SID_NBYTES 68 /* SECURITY_MAX_SID_SIZE */

typedef struct {
    SECURITY_ATTRIBUTES attributes;
    SECURITY_DESCRIPTOR descriptor;
    union {
        TOKEN_USER user;
        unsigned char bytes[sizeof(TOKEN_USER) + SHMPOOL_OS_SID_NBYTES];
    } user;
    ACL *acl;
} shmpool_os_security_t;

static inline int shmpool_os_user(shmpool_os_security_t *s) {
    HANDLE token;
    DWORD n;
    if (!OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &token))
        return -EACCES;
    BOOL done = GetTokenInformation(token, TokenUser, &s->user, sizeof s->user, &n);
    CloseHandle(token);
    return done ? 0 : -EACCES;
}

static inline void shmpool_os_forget_security(shmpool_os_security_t *s) {
    if (s->acl != NULL)
        LocalFree(s->acl);
    s->acl = NULL;
}

/* Attributes for a new file that this user owns and nobody else may open, whatever its folder
 * would pass on. */
static inline int shmpool_os_mine_alone(shmpool_os_security_t *s) {
    EXPLICIT_ACCESS_W mine;
    memset(s, 0, sizeof *s);
    memset(&mine, 0, sizeof mine);
    int rc = shmpool_os_user(s);
    if (rc < 0)
        return rc;
    mine.grfAccessPermissions = FILE_ALL_ACCESS;
    mine.grfAccessMode = SET_ACCESS;
    mine.grfInheritance = NO_INHERITANCE;
    mine.Trustee.TrusteeForm = TRUSTEE_IS_SID;
    mine.Trustee.TrusteeType = TRUSTEE_IS_USER;
    mine.Trustee.ptstrName = (LPWSTR)s->user.user.User.Sid;
    if (SetEntriesInAclW(1, &mine, NULL, &s->acl) != ERROR_SUCCESS ||
        !InitializeSecurityDescriptor(&s->descriptor, SECURITY_DESCRIPTOR_REVISION) ||
        !SetSecurityDescriptorOwner(&s->descriptor, s->user.user.User.Sid, FALSE) ||
        !SetSecurityDescriptorDacl(&s->descriptor, TRUE, s->acl, FALSE) ||
        !SetSecurityDescriptorControl(&s->descriptor, SE_DACL_PROTECTED, SE_DACL_PROTECTED)) {
        shmpool_os_forget_security(s);
        return -EACCES;
    }
    s->attributes.nLength = sizeof s->attributes;
    s->attributes.lpSecurityDescriptor = &s->descriptor;
    s->attributes.bInheritHandle = FALSE;
    return 0;
}

/* Administrators and the system can open everything anyway, as root can on Linux. */
static inline int shmpool_os_is_trusted(PSID sid, PSID user) {
    return EqualSid(sid, user) || IsWellKnownSid(sid, WinLocalSystemSid) ||
           IsWellKnownSid(sid, WinBuiltinAdministratorsSid) ||
           IsWellKnownSid(sid, WinCreatorOwnerRightsSid);
}

/* Judge an open file; negative when its security cannot be read. */
static inline int shmpool_os_access(int fd) {
    shmpool_os_security_t me;
    PSID owner = NULL;
    PACL acl = NULL;
    PSECURITY_DESCRIPTOR descriptor = NULL;
    memset(&me, 0, sizeof me);
    int rc = shmpool_os_user(&me);
    if (rc < 0)
        return rc;
    PSID user = me.user.user.User.Sid;
    if (GetSecurityInfo((HANDLE)(intptr_t)fd, SE_FILE_OBJECT,
                        OWNER_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION, &owner, NULL, &acl,
                        NULL, &descriptor) != ERROR_SUCCESS)
        return -EACCES;
    rc = SHMPOOL_ACCESS_PRIVATE;
    if (owner == NULL || !shmpool_os_is_trusted(owner, user))
        rc = SHMPOOL_ACCESS_FOREIGN;
    else if (acl == NULL) /* no list at all: everybody may */
        rc = SHMPOOL_ACCESS_OPEN;
    else
        for (DWORD i = 0; i < acl->AceCount && rc == SHMPOOL_ACCESS_PRIVATE; i++) {
            ACCESS_ALLOWED_ACE *entry;
            const DWORD matters = FILE_READ_DATA | FILE_WRITE_DATA | FILE_APPEND_DATA |
                                  GENERIC_READ | GENERIC_WRITE | GENERIC_ALL;
            if (!GetAce(acl, i, (void **)&entry))
                rc = -EACCES;
            else if (entry->Header.AceType == ACCESS_ALLOWED_ACE_TYPE &&
                     (entry->Header.AceFlags & INHERIT_ONLY_ACE) == 0 &&
                     (entry->Mask & matters) != 0 && !shmpool_os_is_trusted(&entry->SidStart, user))
                rc = SHMPOOL_ACCESS_OPEN;
        }
    LocalFree(descriptor);
    return rc;
}

#endif
