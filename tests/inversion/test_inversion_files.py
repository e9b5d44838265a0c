import pytest
import torch
from safetensors.torch import save_file

from inverting import SHAPE, Client
from labelleak.errors import UnreadableFile
from labelleak.inversion.files import count_classes, load_weights, observe_file, read_images
from labelleak.lab.networks import build
from labelleak.updates import open_tensors


@pytest.fixture
def save(tmp_path):
    """Writes named tensors to a file, and opens it."""

    def saved(tensors):
        path = tmp_path / "tensors.safetensors"
        save_file(dict(tensors), path)
        return open_tensors(path)

    return saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_loaded_in_their_precision(save, dtype):
    whole = build("lenet5", classes=7, image_shape=SHAPE, batchnorm=True, seed=1).to(dtype)
    file = save(whole.state_dict())
    assert count_classes(file) == 7
    other = build("lenet5", classes=7, image_shape=SHAPE, batchnorm=True, seed=2)
    model = load_weights(other, file, "lenet5")
    assert not model.training
    for name, value in model.named_parameters():
        assert torch.equal(value, whole.get_parameter(name))


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        ("fcn-3", SHAPE, r"is not of fcn-3: 'hidden\.2\.weight' is not there"),
        ("fcn-2", (1, 14, 14), r"'hidden\.0\.weight' is 300x784, and 300x196 is needed"),
    ],
)
def test_weights_of_another_network_are_refused(save, network, shape, message):
    file = save(build("fcn-2", classes=10, image_shape=SHAPE).state_dict())
    model = build(network, classes=10, image_shape=shape)
    with pytest.raises(UnreadableFile, match=message):
        load_weights(model, file, network)


def test_the_gradients_of_a_file_are_what_the_server_sees(digits, save):
    client = Client(digits, [4, 9])
    gradients = client.seen.gradients
    seen = observe_file(client.model, save(gradients), 2, "fcn-2")
    assert seen.batch_size == 2
    assert seen.gradients.keys() == gradients.keys()
    assert all(torch.equal(seen.gradients[name], gradients[name]) for name in gradients)
    with pytest.raises(UnreadableFile, match="holds 'more', and the network has no such parameter"):
        observe_file(client.model, save({**gradients, "more": torch.ones(3)}), 2, "fcn-2")
    del gradients["fc.weight"]
    with pytest.raises(UnreadableFile, match=r"'fc\.weight' is not there"):
        observe_file(client.model, save(gradients), 2, "fcn-2")


def test_true_images_are_pixels_of_the_right_shape(save):
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    path = save({"images": images.double()}).path
    assert torch.equal(read_images(path, (2, *SHAPE)), images)
    with pytest.raises(UnreadableFile, match=r"of 3x1x28x28 is needed, it holds 'images' of 2x1x2"):
        read_images(path, (3, *SHAPE))
    with pytest.raises(UnreadableFile, match="are not pixels from 0 to 1"):
        read_images(save({"images": images * 255}).path, (2, *SHAPE))
