# SPDX-License-Identifier: GPL-2.0-only
# A block of several pages is freed: the table of a pipe that is made smaller.
break free_unref_page if order > 0 && ((struct task_struct *)cpu_tasks[0].task)->pid == $pid
continue
pksm path
