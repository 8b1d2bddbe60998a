"""The user module: what it may import, and how its errors read."""

import hashlib
import sys
from pathlib import Path

import pytest

import birdie_zmq.models
from birdie_zmq.errors import BirdieError, ModelLoadError, UnknownModelTag, UserModuleError
from birdie_zmq.types import REQUEST_ARGUMENTS
from birdie_zmq.worker.user_module import BUILT_IN, import_user_module

KEYWORDS = {"size": 3}
VALID_MODULE = """
def load_model(model_tag, **kwargs):
    return "model", model_tag, kwargs

def load_tokenizer(model_tag, **kwargs):
    return "tokenizer", model_tag, kwargs
"""


def write(folder: Path, text: str, name: str = "api.py") -> str:
    """Write a user module to a folder and return its path."""
    path = folder / name
    path.write_text(text)
    return str(path)


def check_traceback(error: BirdieError, *expected: str) -> None:
    """Check that an error's traceback has the expected lines, and none of this package or the import machinery."""
    assert error.remote_traceback is not None
    for text in expected:
        assert text in error.remote_traceback
    assert "user_module.py" not in error.remote_traceback
    assert "importlib" not in error.remote_traceback


# --- Valid modules ---------------------------------------------------------------------------------------------------


def test_functions_are_called_with_the_tag_and_its_arguments(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, VALID_MODULE))
    assert user_module.load_model("mine", KEYWORDS) == ("model", "mine", {"size": 3})
    assert user_module.load_tokenizer("mine", KEYWORDS) == ("tokenizer", "mine", {"size": 3})


def test_a_function_that_changes_its_arguments_changes_no_others(tmp_path: Path) -> None:
    changing = VALID_MODULE.replace("    return", "    kwargs['sizes'].append(model_tag)\n    return")
    user_module = import_user_module(write(tmp_path, changing))
    keywords: dict[str, list[object]] = {"sizes": [1]}
    assert user_module.load_tokenizer("mine", keywords) == ("tokenizer", "mine", {"sizes": [1, "mine"]})
    assert user_module.load_model("mine", keywords) == ("model", "mine", {"sizes": [1, "mine"]})
    assert keywords == {"sizes": [1]}


def test_name_is_the_path_and_sha256_that_of_the_source(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, VALID_MODULE, name="my_models.py"))
    assert user_module.name == str(tmp_path.resolve() / "my_models.py")
    assert user_module.sha256 == hashlib.sha256(VALID_MODULE.encode()).hexdigest()


def test_relative_path_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, VALID_MODULE)
    monkeypatch.chdir(tmp_path)
    assert import_user_module("api.py").name == str(tmp_path.resolve() / "api.py")


def test_user_module_may_import_from_its_directory(tmp_path: Path) -> None:
    write(tmp_path, "SIZE = 7", name="neighbour.py")
    user_module = import_user_module(write(tmp_path, VALID_MODULE + "from neighbour import SIZE\n"))
    assert user_module.module.SIZE == 7


def test_user_module_may_import_from_its_directory_when_called(tmp_path: Path) -> None:
    write(tmp_path, "SIZE = 7", name="neighbour.py")
    text = """
def load_model(model_tag, **kwargs):
    import neighbour
    return neighbour.SIZE

load_tokenizer = load_model
"""
    assert import_user_module(write(tmp_path, text)).load_model("mine", KEYWORDS) == 7


def test_user_module_may_import_a_package_called_api(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    write(tmp_path / "api", "SIZE = 7", name="__init__.py")
    user_module = import_user_module(write(tmp_path, VALID_MODULE + "from api import SIZE\n", name="page.py"))
    assert user_module.module.SIZE == 7


def test_classes_name_the_user_module_as_their_module(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, VALID_MODULE + "class Thing: ...\n"))
    assert sys.modules[user_module.module.Thing.__module__] is user_module.module


def test_no_path_imports_the_built_in_models() -> None:
    user_module = import_user_module(None)
    assert (user_module.name, user_module.module) == (BUILT_IN, birdie_zmq.models)
    assert user_module.sha256 == hashlib.sha256(Path(birdie_zmq.models.__file__).read_bytes()).hexdigest()


# --- Modules that cannot be imported ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.py", "."], ids=["missing", "folder"])
def test_path_that_is_not_a_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserModuleError, match="no user module at"):
        import_user_module(str(tmp_path / name))


def test_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserModuleError, match="not a Python file"):
        import_user_module(write(tmp_path, VALID_MODULE, name="api.txt"))


def test_syntax_error_has_its_line_in_the_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, VALID_MODULE + "def broken(:\n")
    with pytest.raises(UserModuleError, match="raised SyntaxError") as raised:
        import_user_module(path)
    check_traceback(raised.value, f'File "{path}", line 7', "def broken(:")


def test_error_of_the_import_has_its_line_in_the_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, 'WEIGHTS = {}["layer.0"]\n')
    with pytest.raises(UserModuleError, match=r"raised KeyError: 'layer\.0'") as raised:
        import_user_module(path)
    check_traceback(
        raised.value, f'File "{path}", line 1, in <module>', 'WEIGHTS = {}["layer.0"]', "KeyError: 'layer.0'"
    )


def test_error_in_an_imported_module_has_both_files_in_the_traceback(tmp_path: Path) -> None:
    beside = write(tmp_path, "import no_such_package\n", name="neighbour.py")
    path = write(tmp_path, "import neighbour\n")
    with pytest.raises(UserModuleError, match="ModuleNotFoundError: No module named 'no_such_package'") as raised:
        import_user_module(path)
    check_traceback(raised.value, f'File "{path}", line 1', f'File "{beside}", line 1', "import no_such_package")


def test_system_exit_during_the_import_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserModuleError, match="raised SystemExit: 3"):
        import_user_module(write(tmp_path, "raise SystemExit(3)\n"))


def test_keyboard_interrupt_during_the_import_propagates(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        import_user_module(write(tmp_path, "raise KeyboardInterrupt\n"))


@pytest.mark.parametrize("name", ["load_model", "load_tokenizer"])
@pytest.mark.parametrize("instead", ["del {}\n", "{} = None\n"], ids=["missing", "no-function"])
def test_missing_function_is_named_with_its_signature(tmp_path: Path, name: str, instead: str) -> None:
    path = write(tmp_path, VALID_MODULE + instead.format(name))
    with pytest.raises(UserModuleError) as raised:
        import_user_module(path)
    assert raised.value.message == f"{Path(path).resolve()} has no function {name}(model_tag, **kwargs)"


# --- Functions that raise --------------------------------------------------------------------------------------------

RAISING_MODULE = """
def read(path):
    raise OSError(f"no weights at {path}")

def load_model(model_tag, **kwargs):
    return read("/nowhere")

load_tokenizer = load_model
"""


def test_error_of_load_model_has_its_line_in_the_traceback(tmp_path: Path) -> None:
    path = write(tmp_path, RAISING_MODULE)
    user_module = import_user_module(path)
    with pytest.raises(ModelLoadError) as raised:
        user_module.load_model("mine", KEYWORDS)
    assert raised.value.message == f"load_model('mine', …) of {user_module.name} raised OSError: no weights at /nowhere"
    check_traceback(
        raised.value,
        f'File "{path}", line 6, in load_model\n    return read("/nowhere")',
        f'File "{path}", line 3, in read',
        "OSError: no weights at /nowhere",
    )


def test_error_names_load_tokenizer(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, RAISING_MODULE))
    with pytest.raises(ModelLoadError, match=r"load_tokenizer\('mine'\) of .* raised OSError"):
        user_module.load_tokenizer("mine", {})


def test_traceback_includes_the_cause_of_an_error(tmp_path: Path) -> None:
    text = """
def load_model(model_tag, **kwargs):
    try:
        return {}["layer.0"]
    except KeyError as error:
        raise ValueError("a damaged checkpoint") from error

load_tokenizer = load_model
"""
    user_module = import_user_module(write(tmp_path, text))
    with pytest.raises(ModelLoadError, match="a damaged checkpoint") as raised:
        user_module.load_model("mine", KEYWORDS)
    check_traceback(raised.value, 'return {}["layer.0"]', "direct cause", "ValueError: a damaged checkpoint")


def test_error_names_an_unexpected_keyword(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, "def load_model(model_tag): ...\nload_tokenizer = load_model\n"))
    with pytest.raises(ModelLoadError, match=r"raised TypeError.*'size'"):
        user_module.load_model("mine", KEYWORDS)


def test_error_of_this_package_propagates_unchanged(tmp_path: Path) -> None:
    text = "from birdie_zmq import models\nload_model, load_tokenizer = models.load_model, models.load_tokenizer\n"
    user_module = import_user_module(write(tmp_path, text))
    with pytest.raises(UnknownModelTag, match="'mine'"):
        user_module.load_model("mine", KEYWORDS)


@pytest.mark.parametrize(
    ("raised", "expected"), [("SystemExit(1)", ModelLoadError), ("KeyboardInterrupt", KeyboardInterrupt)]
)
def test_system_exit_of_a_function_is_an_error_and_keyboard_interrupt_propagates(
    tmp_path: Path, raised: str, expected: type[BaseException]
) -> None:
    user_module = import_user_module(
        write(tmp_path, f"def load_model(*args, **kwargs):\n    raise {raised}\nload_tokenizer = print\n")
    )
    with pytest.raises(expected):
        user_module.load_model("mine", KEYWORDS)


# --- Request arguments -----------------------------------------------------------------------------------------------


def declaring(folder: Path, declaration: str, module: str = VALID_MODULE) -> str:
    return write(folder, f"REQUEST_ARGUMENTS = {declaration}\n{module}")


def test_a_module_without_a_declaration_ignores_no_request_argument(tmp_path: Path) -> None:
    user_module = import_user_module(write(tmp_path, VALID_MODULE))
    assert user_module.request_arguments == frozenset()
    assert user_module.load_model("mine", {"seed": 1}) == ("model", "mine", {"seed": 1})


@pytest.mark.parametrize(
    "declaration", ['("seed", "max_gen_toks")', '["max_gen_toks", "seed"]', '{"seed", "max_gen_toks"}']
)
def test_declared_arguments_do_not_reach_the_functions(tmp_path: Path, declaration: str) -> None:
    user_module = import_user_module(declaring(tmp_path, declaration))
    given = {"seed": 1, "size": 3, "prefix_token_id": 4, "max_gen_toks": 5}

    assert user_module.request_arguments == {"seed", "max_gen_toks"}
    assert user_module.load_model("mine", given) == ("model", "mine", {"size": 3, "prefix_token_id": 4})
    assert user_module.load_tokenizer("mine", given) == ("tokenizer", "mine", {"size": 3, "prefix_token_id": 4})


def test_the_built_in_models_ignore_all_request_arguments() -> None:
    assert import_user_module(None).request_arguments == REQUEST_ARGUMENTS


@pytest.mark.parametrize(
    ("declaration", "message"),
    [
        (
            '("seed", "max_length")',
            "names max_length; it may name these arguments: chat_template_args, enable_thinking",
        ),
        ("(1,)", "names 1; it may name"),
        ('"seed"', r"is a str; it must be a tuple of argument names"),
        ("True", r"is a bool; it must be a tuple"),
    ],
)
def test_a_wrong_declaration_is_an_error(tmp_path: Path, declaration: str, message: str) -> None:
    with pytest.raises(UserModuleError, match=message):
        import_user_module(declaring(tmp_path, declaration))


@pytest.mark.parametrize("function", ["load_model", "load_tokenizer"])
def test_an_argument_that_a_function_takes_by_name_cannot_be_declared(tmp_path: Path, function: str) -> None:
    module = VALID_MODULE.replace(f"def {function}(model_tag, ", f"def {function}(model_tag, seed=0, ")
    with pytest.raises(UserModuleError, match=f"declares seed in REQUEST_ARGUMENTS, but {function} has a parameter"):
        import_user_module(declaring(tmp_path, '("seed",)', module))
