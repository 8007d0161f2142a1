"""What runs first in `lmlite.pyz`: puts the package into a cache folder, once, and starts it from there.

Programs and libraries cannot be run from inside an archive, and Python keeps its bytecode only beside real files. The
folder is named by what is in it, so several versions live side by side, and comes into its place whole: of those that
start at once for the first time, one wins and the others take what is there.
"""

# An older Python must be able to read this, or it could not say what is wrong.
# ruff: noqa: UP031, UP036

import os
import stat
import sys

NAME = "lmlite-@DIGEST@"
HAS_MODELS = "@HAS_MODELS@"
FILES = {"@FILES@": 0}
"""All that is in it, with sizes."""
PLACES = "LMLITE_CACHE names another folder for it."


def main():
    if sys.version_info < (3, 10):
        sys.exit("lmlite needs Python 3.10 or newer, this is %d.%d" % sys.version_info[:2])
    archive = os.path.dirname(os.path.abspath(__file__))
    folder = find(archive)
    sys.path[0] = folder
    if HAS_MODELS:
        os.environ["LMLITE_ARCHIVE"] = archive  # they are used where they lie
    from lmlite.__main__ import main

    sys.exit(main())


def find(archive):
    """The folder of the package, unpacked if need be."""
    reasons = []
    for place in places():
        folder = os.path.join(place, NAME)
        try:
            if not is_whole(folder):
                unpack(archive, place, folder)
            check(folder)
            return folder
        except OSError as error:
            reasons.append("%s: %s" % (place, error.strerror or error))
    reasons = "\n  ".join(reasons)
    sys.exit("lmlite: there is no folder that it can be unpacked into and run from.\n  %s\n%s" % (reasons, PLACES))


def places():
    """Where it may lie, the best first."""
    named = os.environ.get("LMLITE_CACHE")
    if named:
        return [os.path.abspath(os.path.expanduser(named))]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    import tempfile

    return [os.path.join(cache, "lmlite"), os.path.join(tempfile.gettempdir(), "lmlite-%d" % os.getuid())]


def unpack(archive, place, folder):
    """Into a folder of its own first: what has its name is complete."""
    import shutil
    import tempfile
    import zipfile

    os.makedirs(place, mode=0o755, exist_ok=True)
    own(place)
    begun = tempfile.mkdtemp(prefix="new-", dir=place)
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                if entry.filename.startswith("lmlite/"):
                    path = opened.extract(entry, begun)
                    mode = entry.external_attr >> 16
                    if mode & 0o100:
                        os.chmod(path, 0o755)
        os.chmod(begun, 0o755)  # root may unpack it for others, in an image
        try:
            os.rename(begun, folder)
        except OSError:
            if not is_whole(folder):  # else somebody else was first
                os.rename(folder, begun + "-old")
                os.rename(begun, folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
        shutil.rmtree(begun + "-old", ignore_errors=True)


def is_whole(folder):
    """Programs that tidy up temporary folders take what was not used for a while, file by file."""
    try:
        return all(os.stat(os.path.join(folder, name)).st_size == size for name, size in FILES.items())
    except OSError:
        return False


def check(folder):
    """Raises OSError where it belongs to somebody else, or nothing may be run from there."""
    own(os.path.dirname(folder))
    import mmap

    library = os.path.join(folder, "lmlite", "lib", "lmlite-engine")
    with open(library, "rb") as file:
        mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()


def own(place):
    """What is run from there must be nobody else's to change, but root's."""
    found = os.stat(place)
    if found.st_uid not in (0, os.getuid()) or stat.S_IMODE(found.st_mode) & 0o022:
        raise OSError("others may write there")


main()
