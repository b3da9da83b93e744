# SPDX-License-Identifier: Apache-2.0
"""The words that stages say to each other: structs, record layouts, the topic table, the error tree.

Pure: no input or output, no asyncio, nothing of ours imported. Evolution is append-only: fields are added at the
end with a default, never reordered, renamed or removed; a tag or an enum number is never used again.
"""
