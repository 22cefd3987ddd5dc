"""Networks in files of other projects, in the terms of this one: one file per source.

| file | whose | the network becomes | particulars |
|---|---|---|---|
| mib.py | MiB, PLOP, ILT, LwF, EWC ...; SDR | deeplabv3(_atrous) | classes by the file's name; RCIL's is refused |
| bisenet.py | MiB on BiSeNet | bisenet | auxiliary classifiers too; without the second copy of its ResNet |
| cil.py | CIL; ERFNet's authors | erfnet | 5, 11 or 19 of Cityscapes' classes, no background |
| mbs.py | MBS | segmenter | background's group joins the first step's; without the ImageNet classifier |
| ssul.py | SSUL | deeplabv3_original, block_layers | layers of background and, if any, of unknown objects |
| dkd.py | DKD | deeplabv3_original, last_conv | its auxiliary classifier is background's layer |
| bacs.py | BACS | deeplabv3, deeplabv3_transformer | without detector, prototypes and states of losses |
| own.py | this project, tensors alone | as the user describes it | |

reading.py reads files without running what they name, recognition.py finds the source. A further one is a file with
`recognise(state)`, which claims names that no other source has, and a line in `recognition.SOURCES`. All images are
normalised by ImageNet's mean and deviation, but those of ERFNet's authors.
"""
