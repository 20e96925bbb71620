"""Lightning on handwritten digits: `python examples/lightning_callback.py`.

The callback is all there is to add: it wraps the optimizers, and has validation, checkpoints and
the model after the fit hold the average.
"""

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lawa_opt.lightning import LAWACallback


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, _):
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def validation_step(self, batch, _):
        x, y = batch
        self.log("loss", F.cross_entropy(self.net(x), y), prog_bar=True)

    def configure_optimizers(self):
        opt = torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=100)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(folder="lightning_digits", epochs=10, ckpt_path=None, **trainer_options):
    L.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train = DataLoader(torch.utils.data.Subset(data, range(1200)), batch_size=50)
    test = DataLoader(torch.utils.data.Subset(data, range(1200, len(data))), batch_size=600)
    checkpoints = ModelCheckpoint(folder, "{epoch}", monitor="loss", save_top_k=-1, save_last=True)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[LAWACallback(k=5), checkpoints],
        **trainer_options,
    )
    model = Digits()
    trainer.fit(model, train, test, ckpt_path=ckpt_path)
    print(f"best average: loss {checkpoints.best_model_score:.4f}")
    return trainer, model


if __name__ == "__main__":
    main()
