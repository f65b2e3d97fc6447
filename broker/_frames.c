/* The compiled twin of broker/domain/frames.py: the same functions, for the work that is done for every frame.
 *
 * Nothing here is needed: where there is no compiler, or no compiled twin, the functions in frames.py serve. What each
 * one guarantees is said there, and the tests hold the two together over arbitrary bytes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>

#define FIN_TEXT 0x81

static PyObject *plain_types;   /* frozenset of bytes: the types that pass, without their prefix */
static PyObject *binding_names; /* tuple of bytes */
static char first[256];         /* the bytes with which one of them begins */

static const char PREFIX[] = "{\"type\":\"response.";
static const char DELTA[] = "output_text.delta\"";
static const char ITEM[] = "output_item.done";
#define LONGEST 64 /* no plain type is longer */

/* The payload of the text frame at `at`: where it begins, or 0 if it is none, or -1 if its header is not whole. */
static Py_ssize_t payload_of(const unsigned char *data, Py_ssize_t size, Py_ssize_t at, Py_ssize_t mask, unsigned long long *length) {
    if (data[at] != FIN_TEXT) return 0;
    if (size - at < 2) return -1;
    if ((data[at + 1] & 0x80) != mask) return 0;
    Py_ssize_t start = at + 2;
    *length = data[at + 1] & 0x7f;
    if (*length >= 126) {
        int wide = *length == 126 ? 2 : 8;
        if (size - start < wide) return -1;
        *length = 0;
        for (int i = 0; i < wide; i++) *length = *length << 8 | data[start + i];
        start += wide;
    }
    return mask ? start + 4 : start;
}

static int arguments(PyObject *const *args, Py_ssize_t nargs, Py_ssize_t wanted, const unsigned char **data, Py_ssize_t *size, Py_ssize_t *at) {
    if (nargs != wanted || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "bytes and a position are wanted");
        return 0;
    }
    *data = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    *size = PyBytes_GET_SIZE(args[0]);
    *at = PyLong_AsSsize_t(args[1]);
    if (*at == -1 && PyErr_Occurred()) return 0;
    if (*at < 0) {
        PyErr_SetString(PyExc_ValueError, "a position is not negative");
        return 0;
    }
    return 1;
}

static PyObject *pair(Py_ssize_t start, Py_ssize_t end) {
    PyObject *made = PyTuple_New(2), *first = PyLong_FromSsize_t(start), *second = PyLong_FromSsize_t(end);
    if (!made || !first || !second) {
        Py_XDECREF(made), Py_XDECREF(first), Py_XDECREF(second);
        return NULL;
    }
    PyTuple_SET_ITEM(made, 0, first);
    PyTuple_SET_ITEM(made, 1, second);
    return made;
}

/* text_frame(data, at, mask, largest) */
static PyObject *text_frame(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    (void)self;
    const unsigned char *data;
    Py_ssize_t size, at;
    if (!arguments(args, nargs, 4, &data, &size, &at)) return NULL;
    Py_ssize_t mask = PyLong_AsSsize_t(args[2]);
    if (mask == -1 && PyErr_Occurred()) return NULL;
    Py_ssize_t largest = PyLong_AsSsize_t(args[3]);
    if (largest == -1 && PyErr_Occurred()) return NULL;
    if (at >= size) return pair(-1, at);
    unsigned long long length = 0;
    Py_ssize_t start = payload_of(data, size, at, mask, &length);
    if (start == 0) return pair(0, at);
    if (start < 0) return pair(-1, at);
    if (start - at > largest || length > (unsigned long long)(largest - (start - at))) return pair(0, at);
    if (start > size || length > (unsigned long long)(size - start)) return pair(-1, at);
    return pair(start, start + (Py_ssize_t)length);
}

/* Whether the payload is plain: 1, 2 for an item that is done, 0 if it is not, -1 on an error. */
static int is_plain(const char *payload, Py_ssize_t length) {
    const Py_ssize_t prefix = sizeof PREFIX - 1, delta = sizeof DELTA - 1, item = sizeof ITEM - 1;
    if (length < prefix || memcmp(payload, PREFIX, (size_t)prefix)) return 0;
    const char *type = payload + prefix;
    Py_ssize_t left = length - prefix;
    if (left >= delta && !memcmp(type, DELTA, (size_t)delta)) return 1;
    const char *quote = memchr(type, '"', (size_t)(left < LONGEST ? left : LONGEST));
    if (!quote) return 0;
    if (quote - type == item && !memcmp(type, ITEM, (size_t)item)) return 2;
    PyObject *name = PyBytes_FromStringAndSize(type, quote - type);
    if (!name) return -1;
    int found = PySet_Contains(plain_types, name);
    Py_DECREF(name);
    return found;
}

/* plain_run(data, at, items) */
static PyObject *plain_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    (void)self;
    const unsigned char *data;
    Py_ssize_t size, at;
    if (!arguments(args, nargs, 3, &data, &size, &at)) return NULL;
    if (!PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "a list is wanted for the items");
        return NULL;
    }
    while (at < size) {
        unsigned long long length = 0;
        Py_ssize_t start = payload_of(data, size, at, 0, &length);
        if (start <= 0 || length > (unsigned long long)(size - start)) break;
        int plain = is_plain((const char *)data + start, (Py_ssize_t)length);
        if (plain < 0) return NULL;
        if (!plain) break;
        Py_ssize_t end = start + (Py_ssize_t)length;
        if (plain == 2) {
            PyObject *item = Py_BuildValue("(nnn)", at, start, end);
            if (!item || PyList_Append(args[2], item)) {
                Py_XDECREF(item);
                return NULL;
            }
            Py_DECREF(item);
        }
        at = end;
    }
    return PyLong_FromSsize_t(at);
}

/* names_any(data): memchr hops from quote to quote, so a long text costs next to nothing. */
static PyObject *names_any(PyObject *self, PyObject *data) {
    (void)self;
    if (!PyBytes_Check(data)) {
        PyErr_SetString(PyExc_TypeError, "bytes are wanted");
        return NULL;
    }
    const char *at = PyBytes_AS_STRING(data), *end = at + PyBytes_GET_SIZE(data);
    while ((at = memchr(at, '"', (size_t)(end - at)))) {
        at++;
        if (at >= end || !first[(unsigned char)*at]) continue;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(binding_names); i++) {
            PyObject *name = PyTuple_GET_ITEM(binding_names, i);
            Py_ssize_t n = PyBytes_GET_SIZE(name);
            if (end - at > n && at[n] == '"' && !memcmp(at, PyBytes_AS_STRING(name), (size_t)n)) Py_RETURN_TRUE;
        }
    }
    Py_RETURN_FALSE;
}

/* prepare(plain, binding): the types that pass, and the names that are searched for, as frames.py has them */
static PyObject *prepare(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *plain, *names;
    if (!PyArg_ParseTuple(args, "O!O!", &PyFrozenSet_Type, &plain, &PyTuple_Type, &names)) return NULL;
    memset(first, 0, sizeof first);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        if (!PyBytes_Check(name) || !PyBytes_GET_SIZE(name)) {
            PyErr_SetString(PyExc_TypeError, "a tuple of bytes is wanted");
            return NULL;
        }
        first[(unsigned char)PyBytes_AS_STRING(name)[0]] = 1;
    }
    Py_INCREF(plain), Py_INCREF(names);
    Py_XSETREF(plain_types, plain);
    Py_XSETREF(binding_names, names);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, "Set the types that pass, and the names that are searched for."},
    {"names_any", names_any, METH_O, "See broker.domain.frames."},
    {"text_frame", (PyCFunction)(void (*)(void))text_frame, METH_FASTCALL, "See broker.domain.frames."},
    {"plain_run", (PyCFunction)(void (*)(void))plain_run, METH_FASTCALL, "See broker.domain.frames."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_frames", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__frames(void) {
    PyObject *made = PyModule_Create(&module);
    if (!made || !(plain_types = PyFrozenSet_New(NULL)) || !(binding_names = PyTuple_New(0))) return NULL;
    return made;
}
