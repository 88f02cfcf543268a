"""Triton's interpreter without what it does over and over.

Before every launch, and before every call of a function of a kernel, it looks through its whole language for what it
has to replace: a quarter of the time that tests take in it. Here the language stays replaced until the module's tests
end.
"""

import os

import pytest


@pytest.fixture(scope="module", autouse=True)
def patched_once():
    """The language is patched at the first launch, and for what that left as it was; a module that uses kernels imports
    this."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from triton import language as tl

    patch, done = interpreter._patch_lang, []

    def once(fn):
        languages = [value for value in fn.__globals__.values() if value is tl or value is tl.core]
        if any(map(tl.core.is_builtin, (tl.tensor.__add__, *(language.load for language in languages)))):
            done.append(patch(fn))
        return interpreter._LangPatchScope()  # with nothing to restore

    with pytest.MonkeyPatch.context() as patches:
        if hasattr(interpreter, "_LangPatchScope"):  # not before triton 3.7
            patches.setattr(interpreter, "_patch_lang", once)
        yield
    for scope in reversed(done):
        scope.restore()
