"""Fetch inputs from storages, and store outputs there.

::

    event.py              recognise an event, with or without envelopes     uses no network
    records.py            find the objects that one event reports           uses no network
    stored_object.py      one such object                                   uses no network
    envelope.py           take events out of envelopes of SQS and SNS       uses no network
    job_event.py          the event of a job, as a shell passes it on       uses no network
    skipped.py            objects of events that are not processed          uses no network
    locator.py            the storage and the path of an event's object     uses no network
    base.py               what each storage does
    s3.py                 }
    webdav.py             } one Storage each, imported only for a provider of this kind; all three use http_client.py
    onedata.py            }
    known_directories.py  the directories that exist in a storage
    open_storages.py      the storages that are in use
    transfer.py           fetch the inputs of events, store the outputs of scripts: 8 files of a storage at a time
    transfer_progress.py  the progress of a transfer, in the log and for a progress bar

``settings/storage_providers.py`` reads the providers of the service definition, with their credentials.
"""
