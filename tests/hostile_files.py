"""Files that run code when unpickled without restrictions; the code creates a mark file."""

import functools
import io
import operator
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def payloads(mark: Path) -> dict[str, object]:
    """Objects that create `mark` when unpickled without restrictions, by kind."""
    code = f'open({str(mark)!r}, "w").close()'
    call = Payload(exec, code)
    importer = Payload(__import__, 'os')
    module = torch.nn.Linear(2, 2)
    module.forward_hooks_of_its_own = call
    module.register_forward_hook(functools.partial(exec, code))
    tensor = torch._utils._rebuild_tensor_v2
    inner = io.BytesIO()
    torch.save(call, inner)
    return {
        'exec': call,
        'system': Payload(os.system, f'touch {mark}'),
        'getattr chain': Payload(
            operator.call, Payload(getattr, importer, 'system'), f'touch {mark}'
        ),
        'partial': Payload(functools.partial(functools.partial(exec), code)),
        'iterator': Payload(list, Payload(map, eval, [code])),
        'object array': np.array([call, None], dtype=object),
        'array subclass': Payload(np.ndarray, (1,), call),
        'scalar': Payload(np.float64(1).__reduce__()[0], np.dtype('f8'), call),
        'bytes of torch': Payload(torch.storage._load_from_bytes, inner.getvalue()),
        'rebuilt tensor': Payload(tensor, call, 0, (1,), (1,), False, {}),
        'rebuilt type': Payload(
            torch._tensor._rebuild_from_type_v2, exec, torch.Tensor, (code,), {}
        ),
        'parameter with state': Payload(
            torch._utils._rebuild_parameter_with_state, torch.ones(1), True, {}, {'x': call}
        ),
        'module': module,
        'dict key': {Payload(str, call): 1},
        'state': Payload(dict, state={'x': call}),
    }


def save_zip(content: object, file: Path) -> None:
    torch.save(content, file)


def save_legacy(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def save_tar(content: object, file: Path) -> None:
    """Write the format before torch 0.1.10, a tar archive of pickles."""
    with tarfile.open(file, 'w') as archive:
        for name, part in (('storages', content), ('tensors', 0), ('pickle', {})):
            data = pickle.dumps(part)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def save_second_pickle(
    content: object, file: Path, names: tuple[str, ...] = ('other.pkl', 'data.pkl')
) -> None:
    """Add a hostile pickle to a harmless zip file, under another and under the same name."""
    torch.save({'state_dict': {}}, file)
    hostile = io.BytesIO()
    torch.save(content, hostile)
    with zipfile.ZipFile(hostile) as source, zipfile.ZipFile(file, 'a') as target:
        entry = next(name for name in source.namelist() if name.endswith('data.pkl'))
        folder = zipfile.ZipFile(file).namelist()[0].split('/')[0]
        for name in names:
            target.writestr(f'{folder}/{name}', source.read(entry))


def save_like_torchscript(content: object, file: Path) -> None:
    """Torch takes a zip file with this record for TorchScript, which is code."""
    save_second_pickle(content, file, ('constants.pkl',))


FORMATS = {
    'zip': save_zip,
    'legacy': save_legacy,
    'pickle': save_pickle,
    'tar': save_tar,
    'second pickle': save_second_pickle,
    'like TorchScript': save_like_torchscript,
}
